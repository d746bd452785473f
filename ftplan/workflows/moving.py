"""A configuration that moves: what its batch was on other devices, and what the machine it goes to has installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from ftplan.errors import InputError

IMPORTED_AS: Final = {
    "bitsandbytes": "bitsandbytes",
    "deepspeed": "deepspeed",
    "liger-kernel": "liger_kernel",
    "flash-attn": "flash_attn",
}
"""Packages that some configurations need, by the module that shows them to be there."""


def missing_packages() -> tuple[str, ...]:
    """Those of `IMPORTED_AS` that this Python lacks. None where it lacks torch: then it is not what trains."""
    if find_spec("torch") is None:
        return ()
    return tuple(package for package, module in IMPORTED_AS.items() if find_spec(module) is None)


def moved(fields: Mapping[str, Any], was: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """``fields`` of a request with the batch that the configuration had before it moved.

    ``was`` holds what is known of it: ``gpus`` it ran on, its ``samples`` a step, its ``learning_rate``. A micro-batch
    and accumulation among the pins are those of the former configuration: the accumulation follows from the new
    devices, ``ranks`` in number, and the micro-batch is kept where it divides what each of them takes. Raises
    InputError if the former batch is not known, or told in two ways that differ.
    """
    pins = dict(fields.get("pins", {}))
    ranks = 1 if pins.get("sharding") == "none" else ranks
    micro, accumulation = pins.get("micro_batch"), pins.get("accumulation")
    made = None
    if was.get("gpus") is not None and micro is not None and accumulation is not None:
        made = micro * accumulation * was["gpus"]
    samples = was.get("samples", made)
    if made is not None and made != samples:
        message = f"micro-batch {micro} x {accumulation} on {was['gpus']} devices made {made} samples, not {samples}"
        raise InputError(message, hint="leave --was-batch out, or correct it", field="was_batch")
    if samples is None:
        raise InputError(
            "what a step was before is not known",
            hint="give --was-batch, or --was-gpus with the --micro-batch and --accumulation it had",
            field="was_gpus" if was.get("gpus") is not None else "was_batch",
        )
    former = {**was, "samples": samples, "micro_batch": micro, "accumulation": accumulation}
    pins.pop("accumulation", None)
    global_batch = fields.get("global_batch", samples)
    if micro is not None and global_batch % (micro * ranks):
        del pins["micro_batch"]
    return {"global_batch": samples, **fields, "pins": pins, "was": former}
