"""The frame of a worker beside the training: guard, events as lines, and a failure told as one of them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ftplan.errors import FtplanError
from ftplan.launcher.events import Failed
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.reporter import Reporter

MESSAGE_LINES: Final = 3
"""Lines of an exception that are told."""

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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    message = " ".join(lines[:MESSAGE_LINES])
    if isinstance(error, FtplanError):
        return Failed(rank=0, kind="input", message=message, hint=error.hint)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failed(rank=0, kind="out_of_memory", message=message, hint="this needs more memory than there is")
    return Failed(rank=0, kind="error", message=f"{type(error).__name__}: {message}")


def main(work: Callable[[bytes, Write], None], failed: Callable[[Failed], bytes]) -> None:
    """The worker module's end: run it on the process's arguments and exit."""
    code = run_worker(sys.argv[1:], work, failed)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
