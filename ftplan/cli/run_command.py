"""``ftplan run``: launch a plan, or plan and launch in one go; resume what stopped."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from ftplan.cli import options
from ftplan.cli.options import refuse
from ftplan.cli.run_options import (
    ENGINES,
    HYPERPARAMETERS,
    NODE_OPTIONS,
    PINS,
    PLANNED,
    RESUME_OPTIONS,
    CacheDir,
    ChatTemplate,
    CountFlops,
    Data,
    DataForm,
    Dataset,
    Demo,
    DryRun,
    Endpoint,
    Engine,
    EngineEnv,
    Epochs,
    EvalFraction,
    Force,
    GlobalBatch,
    Interface,
    JoinSeconds,
    Keep,
    LearningRate,
    MaxFallbacks,
    MaxRestarts,
    MaxSteps,
    Method,
    NoDataCache,
    NodeRank,
    Nodes,
    PlanFile,
    Profile,
    Rehearse,
    RendezvousId,
    Resume,
    ResumeOrStart,
    RunDir,
    SaveSteps,
    Seed,
    SkipBadRows,
    Timeout,
    Tokenizer,
    Track,
    Tune,
    Weights,
    set_names,
)
from ftplan.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from ftplan.launcher.engine import Replaces
    from ftplan.launcher.job import TrainJob
    from ftplan.launcher.records import RunDir as Folder
    from ftplan.results import Plan, RunRecord
    from ftplan.workflows.nodes import NodeOptions

EXAMPLES: Final = """
# a small real training, offline, on this machine's CPU
ftplan run --demo
# plan and train in one go
ftplan run --model Qwen2.5-7B --gpus local --data train.jsonl
# train a plan, or prove it first without a download
ftplan run plan.json --data train.jsonl
ftplan run plan.json --rehearse
# go on with what stopped
ftplan run --resume
"""


def command(
    plan_file: PlanFile = None,
    demo: Demo = False,
    resume: Resume = False,
    model: options.Model = None,
    gpus: options.Gpus = None,
    data: Data = None,
    dataset: Dataset = None,
    data_format: DataForm = None,
    skip_bad_rows: SkipBadRows = False,
    chat_template: ChatTemplate = None,
    no_data_cache: NoDataCache = False,
    eval_fraction: EvalFraction = None,
    method: Method = None,
    global_batch: GlobalBatch = None,
    seq_len: options.SeqLen = None,
    lora_rank: options.LoraRank = None,
    lora_targets: options.LoraTargets = None,
    adapter_len: options.AdapterLen = None,
    adapter_layers: options.AdapterLayers = None,
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
    track: Track = None,
    count_flops: CountFlops = False,
    profile: Profile = False,
    resume_or_start: ResumeOrStart = False,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    rdzv_endpoint: Endpoint = None,
    rdzv_id: RendezvousId = None,
    rdzv_timeout: JoinSeconds = None,
    interface: Interface = None,
    timeout: Timeout = None,
    cache_dir: CacheDir = None,
    engine: Engine = None,
    engine_env: EngineEnv = None,
    dry_run: DryRun = False,
    force: Force = False,
    tune: Tune = False,
    rehearse: Rehearse = False,
    max_restarts: MaxRestarts = 2,
    max_fallbacks: MaxFallbacks = 3,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Train a plan under torchrun, with progress, checkpoints and a record of predicted beside measured.

    Exit code 0 when done, 1 if nothing fits, 2 for bad input, 3 if the run failed or was stopped.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if count_flops and profile:
        raise InputError("--count-flops and --profile disturb each other", hint="give one of the two", field="profile")
    foreign = _is_foreign(engine, engine_env, tune=tune)
    gc.enable()  # this command lives for hours (see ftplan.__main__)
    if resume:
        return _resume(given)
    if resume_or_start and (code := _gone_on(given)) is not None:
        return code
    if not (dry_run or foreign):
        require_training_libraries()
    # A trace runs in this environment's libraries, LLaMA-Factory in those of its own.
    chosen = _confirmed(_plan(given), made_before="plan_file" in given, skip=dry_run or foreign)
    if chosen.config is None:
        from ftplan.render.plans import print_plan

        print_plan(chosen, brief=quiet)
        return 1
    if tune and not dry_run:
        chosen = _tuned(chosen)
    return _start(chosen, given)


def _resume(given: Mapping[str, Any]) -> int:
    from ftplan.workflows import resuming

    _only_resume(given)
    folder = given.get("run_dir")
    if "gpus" in given:
        job = resuming.resumed_on(folder, given["gpus"], _nodes(given), waits=not given["dry_run"])
        from ftplan.render.console import note
        from ftplan.render.estimates import summary

        note(f"on {job.inventory}: {summary(job.config)}")
    else:
        job = resuming.resumed(folder, _nodes(given), waits=not given["dry_run"])
    return _go(job, None, given)


def _gone_on(given: Mapping[str, Any]) -> int | None:
    """The end of a run that is there and goes on, or has ended; None where it is still to begin."""
    from ftplan.render.console import note
    from ftplan.results import RunRecord
    from ftplan.workflows import resuming

    folder, found = resuming.going_on(given.get("run_dir"), _nodes(given), waits=not given["dry_run"])
    if isinstance(found, RunRecord):
        note(f"note: the run in {folder.root} is finished: nothing is started")
        return _finish(found, folder, given)
    if found is None:
        return None
    note(f"note: going on with the run in {folder.root}, with the options it was started with")
    return _go(found, None, given)


def _tuned(chosen: Plan) -> Plan:
    """The fastest of the plans that look best, as trials on this machine show."""
    from ftplan.render.tuning import TuneDisplay
    from ftplan.workflows import tuning

    with TuneDisplay(tuning.BUDGET_SECONDS) as display:
        return tuning.tune(chosen, display.show).plan


def _only_resume(given: Mapping[str, Any]) -> None:
    """A resumed run goes on as it began: raise InputError for an option that would change it."""
    others = sorted(
        name
        for name, value in given.items()
        if name not in RESUME_OPTIONS and (value is not False or name in PINS)  # a flag that is not given is False
    )
    if others:
        shown = ", ".join("--" + name.replace("_", "-") for name in others)
        hint = "a resumed run goes on with the options it was started with; leave them out"
        raise InputError(f"--resume takes no {shown}", hint=hint, field=others[0])


def _is_foreign(engine: str | None, engine_env: Path | None, *, tune: bool) -> bool:
    """Whether LLaMA-Factory's loop trains; raises InputError for another engine, or one without its environment."""
    if engine is not None and engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, field="engine")
    if (engine == "llamafactory") != (engine_env is not None):
        hint = "--engine llamafactory --engine-env DIR, with DIR/bin/llamafactory-cli in it"
        raise InputError("--engine llamafactory and --engine-env go together", hint=hint, field="engine_env")
    if engine_env is not None and tune:
        raise InputError("--tune measures ftplan's own engine", hint="leave --tune out", field="tune")
    return engine_env is not None


def require_training_libraries() -> None:
    """Raise InputError if the extra that trains is not installed."""
    missing = [name for name in ("torch", "transformers", "peft", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"training needs {', '.join(missing)}", hint="pip install 'ftplan[train]'")


def _plan(given: dict[str, Any]) -> Plan:
    from ftplan.workflows import planning, running

    evaluates = bool(given.get("eval_fraction")) and not given["rehearse"]
    if "plan_file" in given:
        refuse(
            given,
            (*(["demo"] if given["demo"] else []), *PLANNED),
            "a plan file says all that is planned, and takes no",
            hint="leave it out",
        )
        chosen = planning.load_plan(given["plan_file"])
        return running.with_evaluations(chosen) if evaluates and chosen.config is not None else chosen
    if given.get("demo"):
        own = ("model", "method", "global_batch", "seq_len", *sorted(PINS), "engine_env")
        refuse(given, own, "--demo brings its own plan and engine, and takes no", hint="leave it out")
        return running.demo_plan(given.get("gpus", running.DEMO_GPUS))
    if "model" not in given:
        raise InputError(
            "nothing to run", hint="ftplan run --demo, ftplan run PLAN.json --data FILE, or --model NAME --data FILE"
        )
    asked = {name: given[name] for name in ("model", "method", "global_batch", "seq_len") if name in given}
    pins = {name: value for name, value in given.items() if name in PINS}
    if evaluates:
        pins["evaluates"] = True
    request = planning.plan_request(given.get("gpus", "local"), pins=pins, **asked)
    if "engine_env" in given:
        from ftplan.workflows import emitting

        return emitting.plan(request, emitting.Emission((given["engine"],)))
    return planning.plan(request)


def _confirmed(chosen: Plan, *, made_before: bool, skip: bool) -> Plan:
    """``chosen`` as a trace confirms it; a dry run starts nothing and needs no training libraries."""
    if skip:
        return chosen
    from ftplan.render.console import note
    from ftplan.workflows import confirming

    plan, why = confirming.before_run(chosen, made_before=made_before)
    if why:
        note(f"note: {why}")
    return plan


def _start(chosen: Plan, given: dict[str, Any]) -> int:
    from ftplan.workflows import running

    settings = running.RunSettings(
        data=tuple(given.get("data", ())),
        datasets=set_names(given.get("dataset", ())),
        data_form=given.get("data_format", "auto"),
        skip_bad_rows=given["skip_bad_rows"],
        chat_template=given.get("chat_template"),
        caches_data=not given["no_data_cache"],
        eval_fraction=given.get("eval_fraction", 0.0),
        run_dir=given.get("run_dir"),
        weights=given.get("weights"),
        tokenizer=given.get("tokenizer"),
        rehearse=given["rehearse"],
        hyperparameters={field: given[name] for name, field in HYPERPARAMETERS.items() if name in given},
        nodes=_nodes(given),
        engine_env=given.get("engine_env"),
        cache_dir=given.get("cache_dir"),
    )
    if given.get("demo"):
        settings = running.demo_settings(settings)
    if settings.rehearse and settings.data:
        from ftplan.render.console import note

        note("note: a rehearsal trains on random tokens: --data is not read")
    ready = running.ready(chosen, settings, force=given["force"], waits=not given["dry_run"])
    if not given["as_json"]:
        from ftplan.render.plans import print_choice

        print_choice(ready.plan)
    return _go(ready.job, ready.plan, given)


def _nodes(given: Mapping[str, Any]) -> NodeOptions:
    from ftplan.workflows.nodes import NodeOptions

    return NodeOptions(**{field: given[name] for name, field in NODE_OPTIONS.items() if name in given})


def _go(job: TrainJob, chosen: Plan | None, given: Mapping[str, Any]) -> int:
    """Launch ``job``, or show what would be launched, as the command's options say."""
    from ftplan.render.runs import RunDisplay, print_meeting, print_prepared
    from ftplan.results import to_json
    from ftplan.workflows import running
    from ftplan.workflows.recovering import Patience

    if job.rendezvous is not None:
        print_meeting(job.rendezvous)
    if given["dry_run"]:
        prepared = running.prepare(job)
        if given["as_json"]:
            typer.echo(to_json(prepared), nl=False)
        else:
            print_prepared(prepared, brief=given["quiet"])
        return 0
    if not job.engine_env:
        require_training_libraries()
    _preflight(job, chosen, force=given["force"])
    patience = Patience(fallbacks=given["max_fallbacks"], restarts=given["max_restarts"])
    replaces: Replaces = "unsaved" if given["resume_or_start"] else "nothing"
    with RunDisplay(job) as display:
        record = running.launch(job, chosen, display.show, patience, replaces=replaces)
    return _finish(record, job.folder, given)


def _preflight(job: TrainJob, chosen: Plan | None, *, force: bool) -> None:
    """Tell what looks wrong, and raise for what would fail, unless it is started by force."""
    from ftplan.render.doctor import print_notes
    from ftplan.workflows import preflight

    findings = preflight.before_run(job, chosen)
    print_notes(findings, forced=force)
    if not force:
        preflight.refuse(findings)


def _finish(record: RunRecord, folder: Folder, given: Mapping[str, Any]) -> int:
    from ftplan.render.runs import print_record
    from ftplan.results import to_json
    from ftplan.workflows import reporting

    if given["as_json"]:
        typer.echo(to_json(record), nl=False)
    else:
        way_on = reporting.way_on(folder, record.status, record.config)
        print_record(record, folder.record, way_on, brief=given["quiet"])
    return 0 if record.status == "finished" else 3
