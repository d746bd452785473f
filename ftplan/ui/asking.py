"""What the controls of the page hold, as a request to the planner and as the same command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import InputError, UnknownNameError
from ftplan.profiles.models import is_catalogued, list_models
from ftplan.spec import PlanRequest
from ftplan.workflows.planning import plan_request

OPEN: Final = "planner's choice"
"""What a control shows that leaves its field to the planner."""

ON_OFF: Final = {"on": True, "off": False}
FLAGS: Final = ("gradient_checkpointing", "packing", "padding", "evaluates", "double_quantization")
NUMBERS: Final = ("micro_batch",)
WORDS: Final = (
    *("sharding", "offload", "optimizer", "kernels", "attention", "precision", "weights_dtype", "quantization"),
    "lora_targets",
)
PINS: Final = (*FLAGS, *NUMBERS, *WORDS)
"""Controls that are fields of `RunConfig`, open or pinned."""

TRAINING: Final[tuple[str, ...]] = ("samples", "epochs", "price")


def inventory_text(values: Mapping[str, Any]) -> str:
    """The devices in the grammar of ``--gpus``: as they were written, else card, number and machines."""
    written = str(values.get("inventory") or "").strip()
    if written:
        return written
    machines, count = int(values["machines"]), int(values["count"])
    return f"{f'{machines}x' if machines > 1 else ''}{count}x{values['card'] or ''}"


def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, by the options of ``ftplan plan``; what is open is left out."""
    found: dict[str, Any] = {
        "model": str(values["model"] or "").strip(),
        "gpus": inventory_text(values),
        "method": values["method"],
        "global_batch": int(values["global_batch"]),
        "seq_len": int(values["seq_len"]),
        "objective": values["objective"],
        "margin": float(values["margin"]) / 100,
    }
    for name in PINS:
        value = values.get(name)
        if value not in (None, "", 0, OPEN):
            found[name] = ON_OFF[value] if name in FLAGS else int(value) if name in NUMBERS else str(value).strip()
    for name in ("lora_rank", "host_memory", "link"):
        value = values.get(name)
        if value not in (None, "", OPEN, "auto" if name == "link" else OPEN):
            found[name] = str(value).strip()
    for name in TRAINING:
        value = values.get(name)
        if value not in (None, "", 0):
            found[name] = int(value) if name == "samples" else float(value)
    if "samples" not in found:
        found.pop("epochs", None)
        found.pop("price", None)
    return found


def request_of(values: Mapping[str, Any], *, hosted: bool = False) -> PlanRequest:
    """The request that the controls make; raises InputError for what cannot be planned.

    A ``hosted`` page takes models from the catalogue alone: a stranger's text opens no path and asks no hub.
    """
    asked = arguments(values)
    if not asked["model"]:
        raise InputError("no model", hint="choose one, or write its name", field="model")
    if hosted:
        _refuse_local(asked)
    pins = {name: asked.pop(name) for name in PINS if name in asked}
    training = {name: asked.pop(name) for name in TRAINING if name in asked}
    return plan_request(asked.pop("gpus"), pins=pins, training=training, **asked)


def _refuse_local(asked: Mapping[str, Any]) -> None:
    if not is_catalogued(asked["model"]):
        raise UnknownNameError("model", asked["model"], (model.id for model in list_models()), field="model")
    refuse_local_devices(asked["gpus"])


def refuse_local_devices(gpus: str) -> None:
    """Raise InputError for the devices of the machine that serves the page."""
    if gpus.strip().lower() == "local":
        hint = "name your cards, such as 2x24GB"
        raise InputError("this page is served by a machine that is not yours", hint=hint, field="gpus")


def command(values: Mapping[str, Any]) -> str:
    """The same request on a command line."""
    words = ["ftplan", "plan"]
    for name, value in arguments(values).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
