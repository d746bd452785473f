"""``ftplan report``: what a run's folder tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ftplan.cli import options

Run = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN]", help="Folder of a run, or of many (default: the newest in ftplan-runs)."),
]

EXAMPLES: Final = """
# the newest run
ftplan report
# one run, as JSON
ftplan report ftplan-runs/20250131-120000-3f2a --json
# a line for each run of a folder
ftplan report ftplan-runs
"""


def command(run: Run = None, quiet: options.Quiet = False, as_json: options.AsJson = False) -> int:
    """Report on a run, finished or not: predicted beside measured, curves, attempts, checkpoints, and how to go on.

    For a folder with several runs, a line for each. Only the folder is read: the run may be another machine's.

    Exit code 0 when done, 2 where there is no run.
    """
    from ftplan.render.reports import print_report, print_runs
    from ftplan.results import to_json
    from ftplan.workflows import reporting

    found = reporting.report(run)
    if as_json:
        typer.echo(to_json(found), nl=False)
    elif isinstance(found, reporting.RunReport):
        print_report(found, brief=quiet)
    else:
        print_runs(found.runs, brief=quiet)
    return 0
