"""``python -m ftplan.launcher.train JOB.json``, started by torchrun once for each rank."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Final, Literal

from ftplan.errors import FtplanError
from ftplan.launcher.events import Failed
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.reporter import Reporter

MESSAGE_LINES: Final = 3
"""Lines of an exception that go into the report; the log has all of it."""


def main(arguments: list[str]) -> int:
    """Train as the job in the file named by the only argument says; returns the exit code."""
    guard = Guard()
    guard.start()
    job = TrainJob.model_validate_json(Path(arguments[0]).read_bytes())
    reporter = Reporter(job.folder.metrics)
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        reporter.start_on_new_line()
    try:
        # Imported here: the guard must be in place first, and a failing import must be reported, too.
        from ftplan.launcher.train.run import train

        if job.rendezvous is not None and job.rendezvous.is_elastic:
            job = job.spread_over(int(os.environ["WORLD_SIZE"]))
        train(job, guard, reporter)
    except Exception as error:
        traceback.print_exc()
        reporter.report(_failed(rank, error))
        return 1
    return 0


def _failed(rank: int, error: Exception) -> Failed:
    """``error`` as an event; classes are told by name, because their modules are heavy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    kind: Literal["out_of_memory", "non_finite_loss", "input", "error"] = "error"
    hint = ""
    if type(error).__name__ == "OutOfMemoryError":
        kind, hint = "out_of_memory", "plan with a larger margin, a smaller micro-batch, or more sharding"
    elif type(error).__name__ == "NonFiniteLossError":
        kind, hint = "non_finite_loss", "lower the learning rate, or use bf16 or fp32 instead of fp16"
    elif isinstance(error, FtplanError):
        kind, hint = "input", error.hint
    return Failed(rank=rank, kind=kind, message=" ".join(lines[:MESSAGE_LINES]), hint=hint)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed must not wait at exit for collectives that the others will never join.
    os._exit(code) if code else sys.exit(code)
