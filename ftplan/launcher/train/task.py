"""The frame of a worker beside the training: guard, events as lines, and a failure told as one of them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ftplan.errors import FtplanError
from ftplan.launcher.events import Failed
from ftplan.launcher.failures import kind_of, message_of
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.reporter import Reporter

_HINTS: Final[Mapping[str, str]] = {
    "out_of_memory": "this needs more memory than there is",
    "out_of_host_memory": "this needs more memory than there is",
    "disk_full": "free some space, or write elsewhere",
}

Write = Callable[[bytes], None]


def run_worker(arguments: list[str], work: Callable[[bytes, Write], None], failed: Callable[[Failed], bytes]) -> int:
    """Do ``work`` on the content of the first file named, writing lines to the second; returns the exit code."""
    guard = Guard()
    guard.start()
    job, told = map(Path, arguments)
    reporter = Reporter(told)
    try:
        work(job.read_bytes(), reporter.write)
    except Exception as error:
        traceback.print_exc()
        reporter.write(failed(_failure(error)))
        return 1
    return 0


def _failure(error: Exception) -> Failed:
    kind, message = kind_of(error), message_of(error)
    if isinstance(error, FtplanError):
        return Failed(rank=0, kind=kind, message=message, hint=error.hint)
    told = message if kind in _HINTS else f"{type(error).__name__}: {message}"
    return Failed(rank=0, kind=kind, message=told, hint=_HINTS.get(kind, ""))


def main(work: Callable[[bytes, Write], None], failed: Callable[[Failed], bytes]) -> None:
    """The worker module's end: run it on the process's arguments and exit."""
    code = run_worker(sys.argv[1:], work, failed)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
