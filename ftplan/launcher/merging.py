"""Merges an adapter into its base in a process of its own; the new folder appears complete, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import publish
from ftplan.launcher.merge_job import MergeEvent, MergeJob, from_line
from ftplan.launcher.tasks import run_task

MODULE: Final = "ftplan.launcher.train.merge"


def run_merge(job: MergeJob, threads: int, on_event: Callable[[MergeEvent], None]) -> None:
    """Merge as ``job`` says, handing on what the worker tells.

    Raises InputError for what cannot be merged, and RunFailedError if the worker dies.
    """
    out = Path(job.out)
    with _partial(out) as partial:
        run_task(
            MODULE,
            job.model_copy(update={"out": str(partial)}),
            device="cpu",
            threads=threads,
            offline=job.base.kind != "hub",
            parse=from_line,
            on_event=on_event,
        )
        _refuse_existing(out)
        publish(partial, out)


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out``, locked, and gone afterwards unless it was renamed."""
    _refuse_existing(out)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror}", hint="choose another --out") from error
    try:
        _lock(descriptor, out)
        # What a killed merge has left.
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} already exists", hint="choose another --out, or remove it", field="out")


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is writing {out}", field="out") from error
