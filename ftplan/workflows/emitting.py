"""A plan as the files of the tools that people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ftplan.errors import CannotExpressError, InputError, UnknownNameError
from ftplan.files import write_atomic
from ftplan.launcher.formats.cluster import Cluster
from ftplan.launcher.formats.given import LAUNCH_FILE, Emitted, Format, Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import written
from ftplan.launcher.formats.wrapping import RANKS, native, wrap
from ftplan.results import Plan, to_json
from ftplan.spec import PlanRequest
from ftplan.workflows.planning import plan as search_plan
from ftplan.workflows.planning import require_config

NATIVE: Final = "native"
ATTEMPTS: Final = 4
"""Plans that are tried before the formats' files are said to be unable."""
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
    """What files are asked for: a framework's, with its release, data and the folder that it writes to.

    ``job`` holds fields of `Cluster`, what a scheduler is asked for.
    """

    names: tuple[str, ...] = (NATIVE,)
    version: str = ""
    dataset: str = ""
    output_dir: str = "output"
    epochs: float | None = None
    job: Mapping[str, Any] = field(default_factory=dict)


def valid_names() -> tuple[str, ...]:
    """What ``--format`` takes."""
    return (NATIVE, *(name for name, each in FORMATS.items() if each.emit is not None), *RANKS)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` in their usual spelling; raises InputError for unknown ones, and for two frameworks at once."""
    found = tuple(dict.fromkeys(part.strip().lower() for name in names for part in name.split(",")))
    for name in found:
        if name not in valid_names():
            raise UnknownNameError("format", name, valid_names(), field="format")
    trainings = [name for name in found if name in FORMATS and FORMATS[name].pins("lora")]
    if len(trainings) > 1:
        hint = "plan for one of them: their memory differs"
        raise InputError(f"{' and '.join(trainings)} train in ways of their own", hint=hint, field="format")
    schedulers = [name for name in found if name in RANKS]
    if len(schedulers) > 1:
        raise InputError(f"{' and '.join(schedulers)} are asked for at once", hint="choose one", field="format")
    return found


def planned_for(request: PlanRequest, names: Sequence[str]) -> PlanRequest:
    """``request`` with what the formats' files fix; raises InputError for a pin that they cannot say."""
    for name in names:
        if name not in FORMATS:
            continue
        chosen = FORMATS[name]
        fixed = chosen.pins(request.method if request.method in ("full", "llama-adapter") else "lora")
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


def plan(request: PlanRequest, asked: Emission) -> Plan:
    """The best plan that the formats' files can say; raises CannotExpressError where they can say none of the best.

    What a format has no words for at all is no candidate. Where it cannot say a sharding together with something else,
    the next plan is taken.
    """
    request = planned_for(request, asked.names)
    for attempt in range(1, ATTEMPTS + 1):
        chosen = search_plan(request)
        if chosen.config is None:
            return chosen
        try:
            emitted(chosen, asked)
        except CannotExpressError:
            if attempt == ATTEMPTS or "sharding" in request.pins:
                raise
            known = tuple(request.not_written.get("sharding", ()))
            lost = {"sharding": (*known, chosen.config.sharding)}
            request = request.model_copy(update={"not_written": {**request.not_written, **lost}})
        else:
            return chosen
    raise AssertionError("every attempt returns or raises")


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
        epochs=DEFAULT_EPOCHS if asked.epochs is None else asked.epochs,
    )
    files: dict[str, str] = {}
    inner: Emitted | None = None
    for name in asked.names:
        if name not in FORMATS:
            continue
        one = FORMATS[name]
        inner, found = written(one, config, _for_release(target, one, asked.version))
        taken = files.keys() & found.keys() - {LAUNCH_FILE}
        if taken:
            raise InputError(
                f"{one.title} writes {', '.join(taken)}, too", hint="ask for one at a time", field="format"
            )
        files |= {key: text for key, text in found.items() if key not in files}
    scheduler = next((name for name in asked.names if name in RANKS), None)
    if scheduler is None:
        return files
    if inner is None and not asked.dataset:
        hint = "add --format llamafactory or another trainer, or give ftplan's own its data with --dataset FILE.jsonl"
        raise InputError(f"nothing says what the {scheduler} job trains on", hint=hint, field="dataset")
    data = [asked.dataset] if asked.dataset else []
    beside = {key: text for key, text in files.items() if key != LAUNCH_FILE}
    return wrap(scheduler, inner or native(target, data), target, _job(chosen, asked), beside=beside)


def _job(chosen: Plan, asked: Emission) -> Cluster:
    """What the scheduler is asked for: the plan's cards and host RAM, and what the user states; raises InputError."""
    _, estimate = require_config(chosen)
    names = {each.name: each for each in fields(Cluster)}
    told: dict[str, Any] = {"host_bytes": estimate.host.needed_bytes}
    device = chosen.request.inventory.groups[0].device
    if "skypilot" in asked.names:
        told["gpu_name"] = device
    for key, value in asked.job.items():
        if key not in names:
            raise UnknownNameError("job option", key, names, field="job")
        told[key] = value if key != "packages" or isinstance(value, list) else str(value).split(",")
    wanted = get_type_hints(Cluster)
    for key, value in told.items():
        told[key] = _as_asked(key, value, wanted[key])
    return Cluster(**told)


def _as_asked(key: str, value: Any, wanted: Any) -> Any:
    """``value`` in the type that the job's option has; raises InputError."""
    try:
        return TypeAdapter(wanted).validate_python(value)
    except ValidationError as error:
        raise InputError(f"--job {key}={value}: {error.errors()[0]['msg']}", field="job") from error


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
