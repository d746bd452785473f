"""Add a trained adapter to its base: one model folder that needs no peft."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from ftplan.errors import InputError
from ftplan.files import user_path
from ftplan.launcher.events import Noted
from ftplan.launcher.job import Source
from ftplan.launcher.merge_job import MergeDtype, MergeEnded, MergeEvent, MergeJob, MergeStated
from ftplan.launcher.merging import run_merge
from ftplan.units import GB, parse_size
from ftplan.workflows.running import cpu_threads
from ftplan.workflows.trained import Trained, find_trained

DEFAULT_SHARD_BYTES: Final = 5 * GB
"""As transformers splits a model."""
QUANTIZED_NOTE: Final = (
    "the adapter was trained on {form} weights and is added to the 16-bit ones they were made of: outputs differ from "
    "those of the training by the error of the quantization"
)


@dataclass(frozen=True, slots=True)
class Merged:
    """A finished merge. Bytes; ``stated_peak_bytes`` was told before it began, ``peak_bytes`` is what it took."""

    out: str
    adapter: str
    base: str
    changed_weights: int
    weights: int
    written_bytes: int
    files: int
    stated_peak_bytes: int
    peak_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


def merge(
    given: Path,
    out: Path,
    *,
    base: str | None = None,
    max_ram: str | None = None,
    dtype: str = "keep",
    max_shard_size: str | None = None,
    on_event: Callable[[MergeEvent], None],
) -> Merged:
    """Merge the adapter of ``given`` (a run or an adapter's folder) into its base and write the model to ``out``.

    Raises InputError for what cannot be merged, RunFailedError if the process that merges dies.
    """
    trained = find_trained(given, base)
    job = _job(trained, user_path(out).absolute(), max_ram, dtype, max_shard_size)
    notes = _notes(trained)
    for note in notes:
        on_event(Noted(note))
    told: list[MergeEvent] = []

    def take(event: MergeEvent) -> None:
        told.append(event)
        on_event(event)

    began = time.monotonic()
    run_merge(job, cpu_threads(1), take)
    stated = next(event for event in told if isinstance(event, MergeStated))
    ended = next(event for event in told if isinstance(event, MergeEnded))
    return Merged(
        out=job.out,
        adapter=job.adapter,
        base=stated.base,
        changed_weights=stated.changed_weights,
        weights=stated.weights,
        written_bytes=stated.written_bytes,
        files=stated.files,
        stated_peak_bytes=stated.peak_bytes,
        peak_bytes=ended.peak_bytes,
        seconds=time.monotonic() - began,
        notes=notes,
    )


def _job(trained: Trained, out: Path, max_ram: str | None, dtype: str, max_shard_size: str | None) -> MergeJob:
    if not trained.is_adapter:
        raise InputError(f"{trained.folder} is a whole model: there is nothing to merge", hint="use it as it is")
    if trained.base is None:
        raise InputError("nothing says which model the adapter belongs to", hint="name it with --base", field="base")
    if dtype not in get_args(MergeDtype):
        raise InputError(f"unknown dtype {dtype!r}", hint=f"valid: {', '.join(get_args(MergeDtype))}", field="dtype")
    return MergeJob.model_validate(
        {
            "adapter": str(trained.folder),
            "base": trained.base,
            "out": str(out),
            "tokenizer": _folder(trained.tokenizer),
            "training": trained.training if trained.base.kind == "config" else None,
            "max_ram_bytes": _bytes(max_ram, "max_ram"),
            "dtype": dtype,
            "max_shard_bytes": _bytes(max_shard_size, "max_shard_size") or DEFAULT_SHARD_BYTES,
        }
    )


def _folder(source: Source) -> str | None:
    return source.location if source.kind == "folder" else None


def _bytes(text: str | None, field: str) -> int | None:
    if text is None:
        return None
    size = parse_size(text)
    if not size:
        raise InputError(f"{text!r} is no size", hint=f"--{field.replace('_', '-')} 8GB", field=field)
    return size


def _notes(trained: Trained) -> tuple[str, ...]:
    notes = [trained.note] if trained.note else []
    if trained.training is not None and trained.training.config.quantization != "none":
        notes.append(QUANTIZED_NOTE.format(form=trained.training.config.quantization))
    return tuple(notes)
