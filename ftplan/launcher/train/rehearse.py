"""``python -m ftplan.launcher.train.rehearse JOB.json``: the trials of a `TrialsJob`, alone or as one rank of many."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.trial_job import TrialsJob


def main(arguments: list[str]) -> int:
    """Do the trials of the job in the file named by the only argument; returns the exit code."""
    guard = Guard()
    guard.start()
    job = TrialsJob.model_validate_json(Path(arguments[0]).read_bytes())
    reporter = Reporter(Path(job.results))
    # Imported here: the guard must be in place first.
    from ftplan.launcher.train.rehearsal import rehearse

    return 0 if rehearse(job, reporter) else 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed must not wait at exit for collectives that the others will never join.
    os._exit(code) if code else sys.exit(code)
