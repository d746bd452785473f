"""Run a plan: a job from it, launched and recorded; resume one that stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ftplan.errors import DoesNotFitError, InputError
from ftplan.estimators.analytic import estimate as analytic_estimate
from ftplan.files import write_atomic
from ftplan.launcher import artifacts, data, demo, engine, records
from ftplan.launcher.engine import OnEvent, Prepared
from ftplan.launcher.events import Noted
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.launcher.records import RunDir
from ftplan.profiles.detect import detect_gpus, detect_node
from ftplan.profiles.models import hub_id, load_model
from ftplan.profiles.schema import Cluster
from ftplan.results import Estimate, Measured, Plan, RunRecord, to_json
from ftplan.spec import RunConfig
from ftplan.workflows import recording
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.inputs import input_error
from ftplan.workflows.planning import plan, plan_request, require_config

DEMO_GPUS: Final = "2xcpu"
DEFAULT_RUNS: Final = Path("ftplan-runs")
DEFAULT_LEARNING_RATES: Final = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}
"""Usual starting points: full fine-tuning moves every weight, adapters need ten times as much (peft, TRL guides)."""

WEIGHT_FILES: Final = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run needs beside a plan. ``hyperparameters`` are fields of `TrainJob`; what is left out is its default."""

    data: tuple[str, ...] = ()
    data_form: str = "auto"
    eval_fraction: float = 0.0
    run_dir: Path | None = None
    weights: str | None = None
    tokenizer: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ready:
    """A job with the plan behind it, checked and not yet started."""

    job: TrainJob
    plan: Plan


def demo_plan(gpus: str = DEMO_GPUS) -> Plan:
    """A plan for the embedded demo model on this machine's CPU, two processes."""
    request = plan_request(
        gpus,
        host_memory=str(detect_node().host.memory_bytes),
        model=str(demo.model_path()),
        global_batch=demo.GLOBAL_BATCH,
        seq_len=demo.SEQ_LEN,
    )
    return plan(request)


def demo_settings(settings: RunSettings) -> RunSettings:
    """``settings`` with the demo's data, weights and hyperparameters where none were given."""
    return RunSettings(
        data=settings.data or demo.data().paths,
        data_form=settings.data_form,
        eval_fraction=settings.eval_fraction,
        run_dir=settings.run_dir,
        weights=settings.weights,
        tokenizer=settings.tokenizer,
        hyperparameters={**demo.LEARNING, **_length_replaces(settings.hyperparameters)},
    )


def _length_replaces(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, where a number of epochs takes the place of the demo's number of steps."""
    return {**given, "max_steps": None} if "epochs" in given else dict(given)


def ready(chosen: Plan, settings: RunSettings, *, force: bool = False) -> Ready:
    """The job for a plan, with its data read and checked.

    Raises DoesNotFitError for a plan that does not fit (unless ``force``), DataError for data that cannot be used,
    InputError for weights or devices that are not there.
    """
    cluster = known_cluster(chosen.request.inventory)
    if settings.eval_fraction:
        chosen = _with_evaluations(chosen, cluster)
    config, estimate = require_config(chosen)
    if not estimate.fits and not force:
        raise DoesNotFitError(
            "the plan does not fit" + (" with its evaluations" if config.evaluates else ""),
            hint="--force starts it all the same",
        )
    source = (
        DataSource.model_validate(
            {"paths": settings.data, "form": settings.data_form, "eval_fraction": settings.eval_fraction}
        )
        if settings.data
        else None
    )
    if source is None:
        raise InputError("no data", hint=f"--data FILE.jsonl; {data.forms_hint()}", field="data")
    data.load(source)
    run_id = records.new_run_id()
    run_dir = settings.run_dir or DEFAULT_RUNS / run_id
    fields = {
        "run_id": run_id,
        "run_dir": str(run_dir.absolute()),
        "config": config,
        "inventory": chosen.request.inventory.text,
        "global_batch": chosen.global_batch,
        **ranks_of(config, cluster),
        "model": weights_source(settings.weights or config.model),
        "tokenizer": weights_source(settings.tokenizer or settings.weights or config.model, tokenizer=True),
        "data": source,
        "predicted": foreseen(estimate, cluster),
        "basis": estimate.basis,
        "learning_rate": DEFAULT_LEARNING_RATES[config.method],
        **settings.hyperparameters,
    }
    if fields.get("max_steps") is None and fields.get("epochs") is None:
        fields["epochs"] = 1.0
    try:
        return Ready(TrainJob.model_validate(fields), chosen)
    except ValidationError as error:
        raise input_error(error) from error


def _with_evaluations(chosen: Plan, cluster: Cluster) -> Plan:
    """The plan of a run that evaluates, estimated anew if it was made for one that does not."""
    config, _ = require_config(chosen)
    if config.evaluates:
        return chosen
    config = config.model_copy(update={"evaluates": True})
    estimated = analytic_estimate(config, load_model(config.model), cluster, margin=chosen.request.margin, replays=True)
    return replace(chosen, config=config, estimate=estimated)


def weights_source(model: str, *, tokenizer: bool = False) -> Source:
    """Where weights (or the tokenizer) of ``model`` come from: the demo, a local folder, or the hub.

    Raises InputError for a path without weights.
    """
    if Path(model).absolute() == demo.model_path().absolute():
        return demo.tokenizer() if tokenizer else demo.model()
    path = Path(model).expanduser()
    if path.is_file():
        path = path.parent
    if path.is_dir():
        if not tokenizer and not any(next(path.glob(pattern), None) for pattern in WEIGHT_FILES):
            raise InputError(
                f"{path} holds no weights ({', '.join(WEIGHT_FILES)})",
                hint="give a folder with weights by --weights",
                field="model",
            )
        return Source(kind="folder", location=str(path.absolute()))
    return Source(kind="hub", location=hub_id(model))


def ranks_of(config: RunConfig, cluster: Cluster) -> dict[str, Any]:
    """The fields of a `TrainJob` that say which processes train ``config`` on ``cluster``."""
    ranks = 1 if config.sharding == "none" else cluster.world_size
    return {
        "world_size": ranks,
        "nproc_per_node": ranks // len(cluster.nodes),
        "device": "cpu" if cluster.gpus[0].kind == "cpu" else "cuda",
        "threads_per_process": _threads(ranks),
    }


def foreseen(estimate: Estimate, cluster: Cluster) -> Measured:
    """The estimate's figures as a run will measure them; a CPU run has no caching allocator to ask."""
    on_cpu = cluster.gpus[0].kind == "cpu"
    return Measured(
        peak_allocated_bytes=None if on_cpu else estimate.peak_allocated_bytes,
        peak_reserved_bytes=None if on_cpu else estimate.peak_reserved_bytes,
        peak_process_bytes=estimate.process_bytes,
        host_bytes=estimate.host_bytes,
        step_seconds=estimate.step_seconds,
        tokens_per_second=estimate.tokens_per_second,
    )


def _threads(ranks: int) -> int:
    """Threads of each rank's CPU libraries: the cores, shared."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def resumed(folder: Path | None) -> TrainJob:
    """The job of the run in ``folder`` (or of the newest that can go on), set to resume.

    Raises InputError if there is none.
    """
    if folder is not None and (folder / "job.json").exists():
        return engine.resume_job(RunDir(folder))
    runs = folder or DEFAULT_RUNS
    newest = records.newest_resumable(runs)
    if newest is None:
        raise InputError(
            f"no run to resume in {runs}", hint="name its folder: ftplan run --resume --run-dir DIR", field="resume"
        )
    return engine.resume_job(newest)


def prepare(job: TrainJob) -> Prepared:
    """What launching ``job`` would start and write."""
    return engine.prepare(job)


def launch(job: TrainJob, chosen: Plan | None, on_event: OnEvent) -> RunRecord:
    """Start the job, follow it to its end and return its record; the plan is kept beside it.

    Later plans for the same devices go by the record of a finished run, too. Raises RunFailedError if the run failed.
    """
    artifacts.argv(job, "job.json")
    check_devices(job)
    if chosen is not None:
        _keep_plan(job, chosen)
    record = engine.launch(job, on_event=on_event)
    if note := recording.recorded(record, ranks=job.world_size):
        on_event(Noted(note))
    return record


def check_devices(job: TrainJob) -> None:
    """Raise InputError if this machine has fewer GPUs than the job has ranks on it."""
    if job.device != "cpu":
        require_gpus(job.inventory, job.nproc_per_node)


def require_gpus(inventory: str, count: int) -> None:
    """Raise InputError if this machine has fewer GPUs than the ``count`` of ``inventory``."""
    found = len(detect_gpus())
    if found < count:
        raise InputError(
            f"the plan is for {inventory}: {count} GPUs, and this machine has {found}",
            hint="run it where they are, or plan with --gpus local",
            field="gpus",
        )


def _keep_plan(job: TrainJob, chosen: Plan) -> None:
    run = RunDir(Path(job.run_dir))
    if run.job.exists():
        raise InputError(f"{run.root} already holds a run", hint="resume it, or choose another folder", field="run_dir")
    try:
        write_atomic(run.plan, to_json(chosen))
    except OSError as error:
        hint = "name a folder that can be made or written"
        raise InputError(f"cannot write to {run.root}: {error.strerror}", hint=hint, field="run_dir") from error
