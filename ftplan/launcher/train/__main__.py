"""``python -m ftplan.launcher.train JOB.json``, started by torchrun once for each rank."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from ftplan.files import end_line
from ftplan.launcher.failures import failed
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.reporter import Reporter


def main(arguments: list[str]) -> int:
    """Train as the job in the file named by the only argument says; returns the exit code."""
    guard = Guard()
    guard.start()
    job = TrainJob.model_validate_json(Path(arguments[0]).read_bytes())
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        end_line(job.folder.metrics)
    reporter = Reporter(job.folder.metrics)
    try:
        # Imported here: the guard must be in place first, and a failing import must be reported, too.
        from ftplan.launcher.train.run import train

        if job.rendezvous is not None and job.rendezvous.is_elastic:
            job = job.spread_over(int(os.environ["WORLD_SIZE"]))
        train(job, guard, reporter)
    except Exception as error:
        traceback.print_exc()
        reporter.report(failed(rank, error))
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed must not wait at exit for collectives that the others will never join.
    os._exit(code) if code else sys.exit(code)
