"""What the controls of the page hold, as a request to the planner and as the same command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import InputError, UnknownNameError
from ftplan.profiles.models import is_catalogued, list_models
from ftplan.spec import Inventory, PlanRequest
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

MOST_DEVICES: Final = 512
MOST_KINDS: Final = 8
MOST_SAMPLES: Final = 256
MOST_TOKENS: Final = 1_000_000
MOST_PRICED: Final = 16
"""Of a hosted page: devices and their kinds, samples of a step on each, tokens of a sample, devices by price."""
ELSEWHERE: Final = "install ftplan for more: there it has your machine to itself"

TRAINING: Final[tuple[str, ...]] = ("samples", "epochs", "price")


def inventory_text(values: Mapping[str, Any]) -> str:
    """The devices in the grammar of ``--gpus``: as they were written, else card, number and machines."""
    written = str(values.get("inventory") or "").strip()
    if written:
        return written
    machines, count = _whole(values, "machines"), _whole(values, "count")
    return f"{f'{machines}x' if machines > 1 else ''}{count}x{values['card'] or ''}"


def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, by the options of ``ftplan plan``; what is open is left out.

    Raises InputError for an empty box, and what is no number where one belongs.
    """
    found: dict[str, Any] = {
        "model": str(values["model"] or "").strip(),
        "gpus": inventory_text(values),
        "method": values["method"] or "auto",
        "global_batch": _whole(values, "global_batch"),
        "seq_len": _whole(values, "seq_len"),
        "objective": values["objective"] or "throughput",
        "margin": _number(values, "margin") / 100,
    }
    for name in PINS:
        value = values.get(name)
        if value not in (None, "", 0, OPEN):
            found[name] = _pin(values, name)
    for name in ("lora_rank", "host_memory", "link"):
        value = values.get(name)
        if value not in (None, "", OPEN, "auto" if name == "link" else OPEN):
            found[name] = str(value).strip()
    for name in TRAINING:
        if values.get(name) not in (None, "", 0):
            found[name] = _whole(values, name) if name == "samples" else _number(values, name)
    if "samples" not in found:
        found.pop("epochs", None)
        found.pop("price", None)
    return found


def _pin(values: Mapping[str, Any], name: str) -> Any:
    value = values[name]
    if name in NUMBERS:
        return _whole(values, name)
    if name not in FLAGS:
        return str(value).strip()
    if value not in ON_OFF:
        raise UnknownNameError(name.replace("_", " "), str(value), (OPEN, *ON_OFF), field=name)
    return ON_OFF[value]


def _number(values: Mapping[str, Any], name: str) -> float:
    """What a box of numbers holds; raises InputError where that is none."""
    value = values.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        shown = name.replace("_", " ")
        raise InputError(f"{shown} is no number", hint=f"write one into the box of {shown}", field=name)
    return float(value)


def _whole(values: Mapping[str, Any], name: str) -> int:
    number = _number(values, name)
    if number < 1:
        raise InputError(f"{name.replace('_', ' ')} must be at least 1", hint=f"given: {number:g}", field=name)
    return int(number)


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
    request = plan_request(asked.pop("gpus"), pins=pins, training=training, **asked)
    if hosted:
        refuse_large(request.inventory)
        _refuse_long(request)
    return request


def _refuse_long(request: PlanRequest) -> None:
    """Raise InputError for what else takes long to plan."""
    devices = request.inventory.world_size
    for what, number, most in (
        ("samples a step", request.global_batch, MOST_SAMPLES * devices),
        ("tokens a sample", request.seq_len, MOST_TOKENS),
        ("devices of which some may be left out for the price", devices * (request.objective == "cost"), MOST_PRICED),
    ):
        if number > most:
            raise InputError(f"this page plans for up to {most:,} {what}", hint=ELSEWHERE, field="gpus")


def refuse_large(inventory: Inventory) -> None:
    """Raise InputError for devices that a page which strangers share would plan for too long."""
    if inventory.world_size > MOST_DEVICES or len(inventory.groups) > MOST_KINDS:
        message = f"this page plans for up to {MOST_DEVICES} devices of {MOST_KINDS} kinds"
        raise InputError(message, hint=ELSEWHERE, field="gpus")


def _refuse_local(asked: Mapping[str, Any]) -> None:
    if not is_catalogued(asked["model"]):
        raise UnknownNameError("model", asked["model"], (model.id for model in list_models()), field="model")
    refuse_local_devices(asked["gpus"])


def refuse_local_devices(gpus: str) -> None:
    """Raise InputError for the devices of the machine that serves the page."""
    if gpus.strip().lower() in ("", "local"):
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
            words += [f"--{option}", repr(value) if isinstance(value, float) else str(value)]
    return shlex.join(words)
