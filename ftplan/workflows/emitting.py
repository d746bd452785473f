"""A plan as the files of the tools that people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError, UnknownNameError
from ftplan.files import write_atomic
from ftplan.launcher.formats.given import LAUNCH_FILE, Format, Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import rendered
from ftplan.results import Plan, to_json
from ftplan.spec import PlanRequest
from ftplan.workflows.planning import require_config

NATIVE: Final = "native"
DEFAULT_EPOCHS: Final = 3.0
"""As in the examples of LLaMA-Factory and axolotl's."""
PACKAGES: Final[Mapping[str, str]] = {
    "llamafactory": "llamafactory",
    "axolotl": "axolotl",
    "trl": "trl",
    "torchtune": "torchtune",
    "swift": "ms-swift",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
}
"""The package whose installed release files are written for, where none is given."""


@dataclass(frozen=True)
class Emission:
    """What files are asked for: a framework's, with its release, data and the folder that it writes to."""

    names: tuple[str, ...] = (NATIVE,)
    version: str = ""
    dataset: str = ""
    output_dir: str = "output"
    learning_rate: float | None = None
    epochs: float | None = None


def valid_names() -> tuple[str, ...]:
    """What ``--format`` takes."""
    return (NATIVE, *(name for name, each in FORMATS.items() if each.emit is not None))


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` in their usual spelling; raises InputError for unknown ones, and for two frameworks at once."""
    found = tuple(dict.fromkeys(part.strip().lower() for name in names for part in name.split(",")))
    for name in found:
        if name not in valid_names():
            raise UnknownNameError("format", name, valid_names(), field="format")
    frameworks = [name for name in found if name != NATIVE and FORMATS[name].pins("lora")]
    if len(frameworks) > 1:
        hint = "plan for one of them: their memory differs"
        raise InputError(f"{' and '.join(frameworks)} train in ways of their own", hint=hint, field="format")
    return found


def planned_for(request: PlanRequest, names: Sequence[str]) -> PlanRequest:
    """``request`` with what the formats' files fix; raises InputError for a pin that they cannot say."""
    for name in names:
        if name == NATIVE:
            continue
        chosen = FORMATS[name]
        fixed = chosen.pins("full" if request.method == "full" else "lora")
        wrong = {key: value for key, value in fixed.items() if request.pins.get(key, value) != value}
        if wrong:
            key, value = next(iter(wrong.items()))
            hint = f"leave it out: {chosen.title} has {value}"
            raise InputError(f"{chosen.title}'s files cannot say {key} {request.pins[key]}", hint=hint, field=key)
        request = request.model_copy(
            update={
                "pins": {**request.pins, **fixed},
                "written_for": chosen.title,
                "not_written": {**request.not_written, **chosen.cannot_say},
            }
        )
    return request


def emitted(chosen: Plan, asked: Emission) -> dict[str, str]:
    """The files of every format that is not ours, by name; raises CannotExpressError for what they cannot say."""
    config, estimate = require_config(chosen)
    inventory = chosen.request.inventory
    alone = config.sharding == "none"
    target = Target(
        nodes=1 if alone else inventory.nodes,
        per_node=1 if alone else len(estimate.ranks) // inventory.nodes,
        dataset=asked.dataset,
        output_dir=asked.output_dir,
        learning_rate=asked.learning_rate,
        epochs=DEFAULT_EPOCHS if asked.epochs is None else asked.epochs,
    )
    files: dict[str, str] = {}
    for name in asked.names:
        if name == NATIVE:
            continue
        one = FORMATS[name]
        found = rendered(one, config, _for_release(target, one, asked.version))
        taken = files.keys() & found.keys() - {LAUNCH_FILE}
        if taken:
            raise InputError(
                f"{one.title} writes {', '.join(taken)}, too", hint="ask for one at a time", field="format"
            )
        files |= {key: text for key, text in found.items() if key not in files}
    return files


def _for_release(target: Target, one: Format, asked: str) -> Target:
    """``target`` with the release that is asked for, else the installed one, else that of the vocabulary."""
    return replace(target, version=asked or installed_release(one.name))


def installed_release(name: str) -> str:
    """The release of a framework's package in this Python, without importing it; empty where there is none."""
    try:
        return metadata.version(PACKAGES[name]) if name in PACKAGES else ""
    except metadata.PackageNotFoundError:
        return ""


def write(chosen: Plan, folder: Path, asked: Emission) -> tuple[Path, ...]:
    """Write plan.json and the formats' files into ``folder`` and return their paths; each is complete or absent."""
    files: dict[str, Any] = {"plan.json": to_json(chosen), **emitted(chosen, asked)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(folder / name, text)
        if LAUNCH_FILE in files:
            (folder / LAUNCH_FILE).chmod(0o755)
    except OSError as error:
        hint = "name a folder that can be made or written"
        raise InputError(f"cannot write to {folder}: {error.strerror}", hint=hint, field="out") from error
    return tuple(folder / name for name in files)
