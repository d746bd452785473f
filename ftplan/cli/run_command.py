"""``ftplan run``: launch a plan, or plan and launch in one go; resume what stopped."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftplan.cli import options
from ftplan.errors import InputError

if TYPE_CHECKING:
    from ftplan.launcher.job import TrainJob
    from ftplan.results import Plan, RunRecord

PlanFile = Annotated[Path | None, typer.Argument(metavar="[PLAN.json]", help="A plan that ftplan plan --out wrote.")]
Demo = Annotated[bool, typer.Option("--demo", help="Train the embedded tiny model on this machine's CPU, offline.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in --run-dir, or the newest that stopped; on other --gpus if given."
    ),
]
Data = Annotated[list[Path] | None, typer.Option("--data", help="JSON or JSON Lines; may be given several times.")]
DataForm = Annotated[
    str | None, typer.Option("--data-format", help="auto, alpaca, sharegpt, chat, prompt-completion or text.")
]
EvalFraction = Annotated[float | None, typer.Option("--eval-fraction", min=0.0, max=0.9, help="Rows held out.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run (default ftplan-runs/ID).")]
Weights = Annotated[str | None, typer.Option("--weights", help="Folder with the weights, if --model is only a name.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help="Folder or hub id of the tokenizer.")]
Epochs = Annotated[float | None, typer.Option("--epochs", min=0.0001, help="Passes over the data (default 1).")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimizer steps, instead of epochs.")]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", min=1e-12, help="Default 2e-4, full training 1e-5.")
]
SaveSteps = Annotated[int | None, typer.Option("--save-steps", min=1, help="Steps between checkpoints.")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="Complete checkpoints to keep.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of initial weights and data order (default 42).")]
GlobalBatch = Annotated[int | None, typer.Option("--global-batch", min=1, help="Samples of one step (default 32).")]
Method = Annotated[str | None, typer.Option("--method", help="auto, full, lora or qlora.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the command and the files; start nothing.")]
Tune = Annotated[bool, typer.Option("--tune", help="Measure the best plans first, and train the fastest.")]
Force = Annotated[bool, typer.Option("--force", help="Start even what does not fit.")]

HYPERPARAMETERS = {
    "epochs": "epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "save_steps": "save_steps",
    "keep": "save_total_limit",
    "seed": "seed",
}
RESUME_OPTIONS = frozenset({"resume", "run_dir", "gpus", "dry_run", "as_json"})
PINS = frozenset(
    {"lora_rank", "lora_targets", "sharding", "offload", "micro_batch", "gradient_checkpointing", "packing"}
)


def command(
    plan_file: PlanFile = None,
    demo: Demo = False,
    resume: Resume = False,
    model: options.Model = None,
    gpus: options.Gpus = None,
    data: Data = None,
    data_format: DataForm = None,
    eval_fraction: EvalFraction = None,
    method: Method = None,
    global_batch: GlobalBatch = None,
    seq_len: options.SeqLen = None,
    lora_rank: options.LoraRank = None,
    lora_targets: options.LoraTargets = None,
    sharding: options.Sharding = None,
    offload: options.Offload = None,
    micro_batch: options.MicroBatch = None,
    gradient_checkpointing: options.Checkpointing = None,
    packing: options.Packing = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    learning_rate: LearningRate = None,
    save_steps: SaveSteps = None,
    keep: Keep = None,
    seed: Seed = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    run_dir: RunDir = None,
    dry_run: DryRun = False,
    force: Force = False,
    tune: Tune = False,
    as_json: options.AsJson = False,
) -> int:
    """Train a plan under torchrun, with progress, checkpoints and a record of predicted beside measured.

    Exit code 0 when done, 1 if nothing fits, 2 for bad input, 3 if the run failed or was stopped.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    gc.enable()  # this command lives for hours (see ftplan.__main__)
    if not dry_run:
        require_training_libraries()
    if resume:
        from ftplan.workflows import resuming, running

        _only_resume(given)

        job = running.resumed(run_dir) if gpus is None else resuming.resumed_on(run_dir, gpus)
        return _go(job, None, dry_run=dry_run, as_json=as_json)
    chosen = _confirmed(_plan(given), made_before="plan_file" in given, dry_run=dry_run)
    if chosen.config is None:
        from ftplan.render.plans import print_plan

        print_plan(chosen)
        return 1
    if tune and not dry_run:
        chosen = _tuned(chosen)
    return _start(chosen, given, dry_run=dry_run, force=force, as_json=as_json)


def _tuned(chosen: Plan) -> Plan:
    """The fastest of the plans that look best, as trials on this machine show."""
    from ftplan.render.tuning import TuneDisplay
    from ftplan.workflows import tuning

    with TuneDisplay(tuning.BUDGET_SECONDS) as display:
        return tuning.tune(chosen, display.show).plan


def _only_resume(given: Mapping[str, Any]) -> None:
    """A resumed run goes on as it began: raise InputError for an option that would change it."""
    others = sorted(name for name, value in given.items() if value is not False and name not in RESUME_OPTIONS)
    if others:
        shown = ", ".join("--" + name.replace("_", "-") for name in others)
        hint = "a resumed run goes on with the options it was started with; leave them out"
        raise InputError(f"--resume takes no {shown}", hint=hint, field=others[0])


def require_training_libraries() -> None:
    """Raise InputError if the extra that trains is not installed."""
    missing = [name for name in ("torch", "transformers", "peft", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"training needs {', '.join(missing)}", hint="pip install 'ftplan[train]'")


def _plan(given: dict[str, Any]) -> Plan:
    from ftplan.workflows import planning, running

    if "plan_file" in given:
        if given.get("demo") or "model" in given:
            raise InputError("a plan file needs no --demo or --model", hint="ftplan run PLAN.json --data FILE")
        return planning.load_plan(given["plan_file"])
    if given.get("demo"):
        if "model" in given:
            raise InputError("--demo brings its own model", hint="leave --model out", field="model")
        return running.demo_plan(given.get("gpus", running.DEMO_GPUS))
    if "model" not in given:
        raise InputError(
            "nothing to run", hint="ftplan run --demo, ftplan run PLAN.json --data FILE, or --model NAME --data FILE"
        )
    asked = {name: given[name] for name in ("model", "method", "global_batch", "seq_len") if name in given}
    pins = {name: value for name, value in given.items() if name in PINS}
    if given.get("eval_fraction"):
        pins["evaluates"] = True
    return planning.plan(planning.plan_request(given.get("gpus", "local"), pins=pins, **asked))


def _confirmed(chosen: Plan, *, made_before: bool, dry_run: bool) -> Plan:
    """``chosen`` as a trace confirms it; a dry run starts nothing and needs no training libraries."""
    if dry_run:
        return chosen
    from ftplan.render.console import err, words
    from ftplan.workflows import confirming

    plan, note = confirming.before_run(chosen, made_before=made_before)
    if note:
        err().print(words(f"note: {note}"), soft_wrap=True)
    return plan


def _start(chosen: Plan, given: dict[str, Any], *, dry_run: bool, force: bool, as_json: bool) -> int:
    from ftplan.workflows import running

    settings = running.RunSettings(
        data=tuple(str(path) for path in given.get("data", ())),
        data_form=given.get("data_format", "auto"),
        eval_fraction=given.get("eval_fraction", 0.0),
        run_dir=given.get("run_dir"),
        weights=given.get("weights"),
        tokenizer=given.get("tokenizer"),
        hyperparameters={field: given[name] for name, field in HYPERPARAMETERS.items() if name in given},
    )
    if given.get("demo"):
        settings = running.demo_settings(settings)
    ready = running.ready(chosen, settings, force=force)
    if not as_json:
        from ftplan.render.plans import print_choice

        print_choice(ready.plan)
    return _go(ready.job, ready.plan, dry_run=dry_run, as_json=as_json)


def _go(job: TrainJob, chosen: Plan | None, *, dry_run: bool, as_json: bool) -> int:
    from ftplan.render.runs import RunDisplay, print_prepared
    from ftplan.results import to_json
    from ftplan.workflows import running

    if dry_run:
        prepared = running.prepare(job)
        if as_json:
            typer.echo(to_json(prepared), nl=False)
        else:
            print_prepared(prepared)
        return 0
    with RunDisplay(job.predicted) as display:
        record = running.launch(job, chosen, display.show)
    return _finish(record, job, as_json=as_json)


def _finish(record: RunRecord, job: TrainJob, *, as_json: bool) -> int:
    from ftplan.render.runs import print_record
    from ftplan.results import to_json

    if as_json:
        typer.echo(to_json(record), nl=False)
    else:
        print_record(record, job.run_dir)
    return 0 if record.status == "finished" else 3
