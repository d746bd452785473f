"""``ftplan calibrate``: measure this machine's devices, so that later plans go by them."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

from ftplan.cli import options
from ftplan.cli.completing import constant
from ftplan.errors import InputError

Show = Annotated[bool, typer.Option("--show", help="Print what was measured and recorded; measure nothing.")]
Reset = Annotated[bool, typer.Option("--reset", help="Remove what was measured and recorded; measure nothing.")]
Gpus = Annotated[
    str,
    typer.Option(
        "--gpus",
        autocompletion=constant("ftplan.workflows.calibrating", "DEVICES"),
        help="local: this machine's GPUs, else its CPU; or cpu.",
    ),
]

EXAMPLES: Final = """
# measure this machine, in two minutes at most
ftplan calibrate
# what was measured and recorded
ftplan calibrate --show
# back to the packaged figures
ftplan calibrate --reset
"""


def command(
    gpus: Gpus = "local",
    show: Show = False,
    reset: Reset = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Measure context, NCCL, matrix rate, bandwidths, links and launch times of this machine, in two minutes at most.

    Later plans use the figures and say so. Exit code 0 when done, 2 for bad input, 3 if nothing could be measured.
    """
    if show and reset:
        raise InputError("--show and --reset exclude each other", hint="give one of them", field="reset")
    if show:
        return _show(as_json=as_json, brief=quiet)
    if reset:
        return _reset(as_json=as_json, brief=quiet)
    from ftplan.render.calibrations import CalibrationDisplay, print_calibration
    from ftplan.results import to_jsonable
    from ftplan.workflows import calibrating

    with CalibrationDisplay() as display:
        made = calibrating.calibrate(gpus, display.show)
    if as_json:
        typer.echo(json.dumps({"calibrations": [to_jsonable(one) for one in made]}, indent=2))
        return 0
    for one in made:
        print_calibration(one, brief=quiet)
    return 0


def _show(*, as_json: bool, brief: bool) -> int:
    from ftplan.render.calibrations import print_kept
    from ftplan.results import to_json
    from ftplan.workflows import calibrating

    kept = calibrating.kept()
    if as_json:
        typer.echo(to_json(kept), nl=False)
    else:
        print_kept(kept, brief=brief)
    return 0


def _reset(*, as_json: bool, brief: bool) -> int:
    from ftplan.render.calibrations import print_removed
    from ftplan.workflows import calibrating

    removed = calibrating.forget()
    if as_json:
        typer.echo(json.dumps({"removed": [str(path) for path in removed]}, indent=2))
    else:
        print_removed(removed, brief=brief)
    return 0
