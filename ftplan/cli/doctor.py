"""``ftplan doctor``: whether this machine can do a run now, and what to mend if it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ftplan.cli import options
from ftplan.cli.options import refuse
from ftplan.cli.run_options import (
    ChatTemplate,
    Data,
    DataForm,
    Dataset,
    Demo,
    Keep,
    Method,
    RunDir,
    SkipBadRows,
    Tokenizer,
    Weights,
    set_names,
)
from ftplan.errors import InputError

if TYPE_CHECKING:
    from ftplan.workflows.examining import Subject

Given = Annotated[
    Path | None, typer.Argument(metavar="[PLAN.json | RUN_DIR]", help="A plan, or the folder of a run to resume.")
]

ASKED = ("model", "method", "global_batch", "seq_len")
OF_A_JOB = ("data", "dataset", "data_format", "chat_template", "keep", "weights", "tokenizer", "run_dir")
"""Options that make a job of a plan; a run has its own."""

EXAMPLES: Final = """
# this machine alone
ftplan doctor
# whether it can do this plan now, with these data
ftplan doctor plan.json --data train.jsonl
# whether a stopped run can go on
ftplan doctor ftplan-runs/20250131-120000-3f2a
"""


def command(
    given: Given = None,
    demo: Demo = False,
    model: options.Model = None,
    gpus: options.Gpus = None,
    method: Method = None,
    global_batch: options.GlobalBatch = None,
    seq_len: options.SeqLen = None,
    data: Data = None,
    dataset: Dataset = None,
    data_format: DataForm = None,
    skip_bad_rows: SkipBadRows = False,
    chat_template: ChatTemplate = None,
    keep: Keep = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    run_dir: RunDir = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Check this machine, and with a plan or a model whether it can do that run now: driver, GPUs, their free memory,
    libraries, disk space for checkpoints, host RAM, and with --data the lengths of its rows; each with a fix.

    Exit code 0 without errors, 1 with errors, 2 for bad input.
    """
    values = {name: value for name, value in locals().items() if value is not None}
    from ftplan.render.console import SignOfLife
    from ftplan.results import to_json
    from ftplan.workflows import examining

    subject = _subject(values)
    with SignOfLife("asking the machine"):
        examination = examining.examine(subject)
    if as_json:
        typer.echo(to_json(examination), nl=False)
    else:
        from ftplan.render.doctor import print_examination

        print_examination(examination, brief=quiet)
    return 1 if examination.status == "error" else 0


def _subject(values: dict[str, Any]) -> Subject:
    from ftplan.workflows import examining, planning, running

    if "data" not in values and not values["demo"]:
        unread = ("dataset", "data_format", "chat_template", "tokenizer")
        refuse(values, unread, "without --data nothing is tokenized, which takes", hint="--data FILE")
    if "given" in values:
        _alone(values)
        folder = values["given"]
        if (folder / "job.json").exists():
            return examining.of_run(folder)
        if not (folder / "plan.json" if folder.is_dir() else folder).exists():
            hint = "a plan.json, the folder of one, or the folder of a run"
            raise InputError(f"cannot read {folder}: there is no plan and no run", hint=hint, field="plan")
        return examining.of_plan(planning.load_plan(folder), _settings(values))
    if values["demo"]:
        plan = running.demo_plan(values.get("gpus", running.DEMO_GPUS))
        return examining.of_plan(plan, running.demo_settings(_settings(values)))
    if "model" in values:
        asked = {name: values[name] for name in ASKED if name in values}
        plan = planning.plan(planning.plan_request(values.get("gpus", "local"), **asked))
        return examining.of_plan(plan, _settings(values))
    if "data" in values:
        raise InputError("data is checked against a plan", hint="name a plan, or --model", field="data")
    return examining.of_machine(values.get("run_dir"))


def _alone(values: dict[str, Any]) -> None:
    """A plan or a run says itself what it is of: raise InputError for an option that would say otherwise."""
    is_run = (values["given"] / "job.json").exists()
    demo = ("demo",) if values["demo"] else ()
    refuse(
        values,
        (*ASKED, "gpus", *demo, *(OF_A_JOB if is_run else ())),
        f"{values['given']} takes no",
        hint="leave it out",
    )


def _settings(values: dict[str, Any]) -> Any:
    from ftplan.workflows import running

    return running.RunSettings(
        data=tuple(str(path) for path in values.get("data", ())),
        datasets=set_names(values.get("dataset", ())),
        data_form=values.get("data_format", "auto"),
        skip_bad_rows=values["skip_bad_rows"],
        chat_template=values.get("chat_template"),
        run_dir=values.get("run_dir"),
        weights=values.get("weights"),
        tokenizer=values.get("tokenizer"),
        hyperparameters={"save_total_limit": values["keep"]} if "keep" in values else {},
    )
