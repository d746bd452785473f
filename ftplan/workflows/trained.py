"""What a run has left, or a folder holds, to go on with: an adapter or a whole model, its base and its tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import user_path
from ftplan.launcher import checkpoints, engine
from ftplan.launcher.job import Source, TrainJob
from ftplan.launcher.records import RunDir
from ftplan.profiles.models import hub_id
from ftplan.workflows.running import WEIGHT_FILES

ADAPTER_CONFIG: Final = "adapter_config.json"
RANDOM_BASE: Final = "base"
"""The folder of a run with random weights that were quantized: they had to be on disk for it."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained adapter or model.

    Attributes:
        folder: where its weights are.
        is_adapter: whether they are an adapter's.
        base: the model it was trained from; None where nothing says.
        tokenizer: where the tokenizer is.
        training: the job of the run, None for a bare folder.
        note: what a user should know of the choice of folder; may be empty.

    """

    folder: Path
    is_adapter: bool
    base: Source | None
    tokenizer: Source
    training: TrainJob | None = None
    note: str = ""


def find_trained(given: Path, base: str | None = None) -> Trained:
    """What ``given``, a run, an adapter or a model, holds; ``base`` takes the place of the base it was trained from.

    Raises InputError where there is nothing of use.
    """
    folder = user_path(given).absolute()
    if not folder.is_dir():
        raise InputError(f"{given} is no folder", hint="name a run's folder, or an adapter's")
    found = _of_run(folder) if (folder / "job.json").exists() else _of_folder(folder)
    if base is not None:
        return replace(found, base=base_source(base))
    return _without_lost_base(found)


def _without_lost_base(found: Trained) -> Trained:
    """``found``, unless its base was drawn under ZeRO-3, where every rank draws parts: one process draws others."""
    job = found.training
    if job is None or found.base is None or found.base.kind != "config" or job.config.sharding != "zero3":
        return found
    if found.is_adapter:
        raise InputError(
            "the run's base was random weights that ZeRO-3 drew in parts: they cannot be drawn again, and are gone",
            hint="with --weights FOLDER a run trains weights that last",
            field="base",
        )
    return replace(found, base=None)


def base_source(given: str) -> Source:
    """A folder with a model, or a hub id; raises InputError for a folder that holds none."""
    path = user_path(given)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"{path} holds no config.json", hint="a base is a model folder", field="base")
        return Source(kind="folder", location=str(path.absolute()))
    if path.is_absolute() or given.startswith((".", "~")):
        raise InputError(f"there is no folder {path}", hint="--base takes a model folder or a hub id", field="base")
    return Source(kind="hub", location=hub_id(given))


def _of_run(folder: Path) -> Trained:
    run = RunDir(folder)
    job = engine.load_job(run)
    if job.model.kind == "random":
        hint = "train the plan with --data and --weights"
        raise InputError(f"{folder} was a rehearsal: its weights are random", hint=hint)
    weights, note = _newest_weights(run)
    base = job.model
    if base.kind == "config" and (folder / RANDOM_BASE / "config.json").exists():
        base = Source(kind="folder", location=str(folder / RANDOM_BASE))
    # What was trained with is saved beside the weights: its chat template may not be that of where it came from.
    own = (weights / "tokenizer_config.json").exists()
    tokenizer = Source(kind="folder", location=str(weights)) if own else job.tokenizer
    return Trained(weights, (weights / ADAPTER_CONFIG).exists(), base, tokenizer, job, note)


def _newest_weights(run: RunDir) -> tuple[Path, str]:
    if _has_weights(run.final):
        return run.final, ""
    saved = checkpoints.complete(run.checkpoints)
    usable = next((one for one in saved if _has_weights(one.path)), None)
    if usable is not None:
        return usable.path, f"the run has no final result: this is its checkpoint of step {usable.step}"
    hint = f"go on with it: ftplan run --resume --run-dir {run.root}" if saved else "let it train first"
    raise InputError(f"the run in {run.root} has no trained weights yet", hint=hint)


def _of_folder(folder: Path) -> Trained:
    tokenizer = Source(kind="folder", location=str(folder))
    if (folder / ADAPTER_CONFIG).exists():
        return Trained(folder, True, _base_of_adapter(folder), tokenizer)
    if (folder / "config.json").exists() and _has_weights(folder):
        return Trained(folder, False, None, tokenizer)
    raise InputError(
        f"{folder} holds no run (job.json), no adapter ({ADAPTER_CONFIG}) and no model (config.json with weights)",
        hint="name a run's folder, or that of an adapter or a model",
    )


def _base_of_adapter(folder: Path) -> Source | None:
    """The base that the adapter's configuration names; None where it names none, or a folder that is not there."""
    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG} cannot be read") from error
    if not name or not isinstance(name, str):
        return None
    if Path(name).is_dir():
        return Source(kind="folder", location=str(Path(name).absolute()))
    return None if Path(name).is_absolute() else Source(kind="hub", location=name)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES)
