"""Run a plan: a job from it, launched and recorded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ftplan.errors import DoesNotFitError, InputError
from ftplan.estimators.analytic import estimate as analytic_estimate
from ftplan.files import user_path
from ftplan.launcher import chat_templates, data, data_sources, demo, engine, records, trackers
from ftplan.launcher.engine import OnEvent, Prepared, Replaces
from ftplan.launcher.events import Noted
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.launcher.llamafactory import engine as factory
from ftplan.launcher.records import RunDir
from ftplan.launcher.timeouts import collective_seconds
from ftplan.profiles.data_folder import cache_folder
from ftplan.profiles.detect import detect_gpus, detect_node
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import hub_id, load_hf_config, load_model
from ftplan.results import Estimate, Plan, RunRecord, to_json
from ftplan.spec import RunConfig
from ftplan.workflows import promises, recording, recovering
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.inputs import input_error
from ftplan.workflows.nodes import NodeOptions, meeting
from ftplan.workflows.planning import plan, plan_request, require_config
from ftplan.workflows.recovering import Patience

DEMO_GPUS: Final = "2xcpu"
DEFAULT_RUNS: Final = Path("ftplan-runs")
REHEARSED_STEPS: Final = 8
"""Memory is at its peak from the second step on; the others give a steady time."""
DEFAULT_LEARNING_RATES: Final = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4, "llama-adapter": 9e-3}
"""Usual starting points: full fine-tuning moves every weight, adapters need ten times as much (peft, TRL guides);
LLaMA-Adapter's prompts were trained with 9e-3 (arXiv 2303.16199, section 4.1)."""

WEIGHT_FILES: Final = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run needs beside a plan. ``hyperparameters`` are fields of `TrainJob`; what is left out is its default.

    ``rehearse`` trains random weights on random tokens for a few steps, which needs neither data nor a download.
    """

    data: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    data_form: str = "auto"
    skip_bad_rows: bool = False
    chat_template: str | None = None
    caches_data: bool = True
    eval_fraction: float = 0.0
    run_dir: Path | None = None
    weights: str | None = None
    tokenizer: str | None = None
    rehearse: bool = False
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    nodes: NodeOptions = field(default_factory=NodeOptions)
    engine_env: Path | None = None
    cache_dir: Path | None = None


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
    """``settings`` with the demo's data and hyperparameters where none were given; a rehearsal has its own."""
    if settings.rehearse:
        return settings
    learning = dict(demo.LEARNING)
    if "epochs" in settings.hyperparameters:
        del learning["max_steps"]
    hyperparameters = {**learning, **settings.hyperparameters}
    return replace(settings, data=settings.data or demo.data().paths, hyperparameters=hyperparameters)


def ready(chosen: Plan, settings: RunSettings, *, force: bool = False, waits: bool = True) -> Ready:
    """The job for a plan, with its data read and checked; it ``waits`` for the first of several nodes to appear.

    Raises DoesNotFitError for a plan that does not fit (unless ``force``), DataError for data that cannot be used,
    InputError for weights or devices that are not there.
    """
    trackers.check_names(settings.hyperparameters.get("trackers", ()))
    cluster = known_cluster(chosen.request.inventory)
    if settings.eval_fraction and not settings.rehearse:
        chosen = with_evaluations(chosen)
    config, estimate = require_config(chosen)
    if not estimate.fits and not force:
        raise DoesNotFitError(
            "the plan does not fit" + (" with its evaluations" if config.evaluates else ""),
            hint="--force starts it all the same",
        )
    trained = {} if settings.rehearse else _real(config, settings)
    rendezvous = meeting(settings.nodes, os.environ, run_dir=settings.run_dir, waits=waits)
    run_id = rendezvous.id if rendezvous else records.new_run_id()
    run_dir = settings.run_dir or DEFAULT_RUNS / run_id
    if run_dir.absolute() == Path.cwd() and any(run_dir.iterdir()):
        hint = "name a folder of the run's own"
        raise InputError("--run-dir is the current folder, which holds other files", hint=hint, field="run_dir")
    if settings.rehearse:
        trained = _rehearsed(RunDir(run_dir.absolute()), estimate, cluster)
    fields = {
        "run_id": run_id,
        "run_dir": str(run_dir.absolute()),
        "config": config,
        "inventory": chosen.request.inventory.text,
        "global_batch": chosen.global_batch,
        **ranks_of(config, cluster),
        "rendezvous": rendezvous,
        "cache_dir": str(settings.cache_dir.absolute()) if settings.cache_dir else None,
        "engine_env": str(settings.engine_env.absolute()) if settings.engine_env else None,
        "margin": chosen.request.margin,
        "timeout_seconds": collective_seconds(estimate.total_params, estimate.trainable_params),
        **promises.fields(config, estimate, chosen.request.inventory),
        "learning_rate": DEFAULT_LEARNING_RATES[config.method],
        **trained,
        **settings.hyperparameters,
    }
    if "epochs" in settings.hyperparameters and "max_steps" not in settings.hyperparameters:
        fields["max_steps"] = None
    if fields.get("max_steps") is None and fields.get("epochs") is None:
        fields["epochs"] = 1.0
    try:
        return Ready(TrainJob.model_validate(fields), chosen)
    except ValidationError as error:
        raise input_error(error) from error


def _real(config: RunConfig, settings: RunSettings) -> dict[str, Any]:
    """The fields of a job that trains a model on data; raises InputError for what is not there or cannot be used."""
    source = _data_source(settings)
    if settings.chat_template is not None:
        chat_templates.template(settings.chat_template)
    data.check(source)
    return {
        "model": weights_source(settings.weights or config.model),
        "tokenizer": weights_source(settings.tokenizer or settings.weights or config.model, tokenizer=True),
        "data": source,
        "chat_template": settings.chat_template,
        "data_cache": _data_cache() if settings.caches_data else None,
    }


def _rehearsed(run: RunDir, told: Estimate, cluster: Cluster) -> dict[str, Any]:
    """The fields of a job that rehearses: a few steps, nothing saved, no more memory than the planned card offers."""
    return {
        "model": Source(kind="random", location=str(run.architecture)),
        # It pads rows of random tokens, and nothing else.
        "tokenizer": demo.tokenizer(),
        "data": DataSource(synthetic=True),
        "max_steps": REHEARSED_STEPS,
        "save_steps": None,
        "cap_bytes": None if cluster.gpus[0].kind == "cpu" else told.capacity_bytes,
    }


def _data_source(settings: RunSettings) -> DataSource:
    if not settings.data:
        hint = f"--data FILE.jsonl, or --rehearse to try the plan without; {data.forms_hint()}"
        raise InputError("no data", hint=hint, field="data")
    try:
        return data_sources.data_source(
            settings.data,
            settings.datasets,
            form=settings.data_form,
            skip_bad_rows=settings.skip_bad_rows,
            eval_fraction=settings.eval_fraction,
        )
    except ValidationError as error:
        raise input_error(error) from error


def _data_cache() -> str | None:
    """Where tokenized data is kept; None for a user without a home."""
    try:
        return str(cache_folder() / "data")
    except InputError:
        return None


def with_evaluations(chosen: Plan) -> Plan:
    """The plan of a run that evaluates, estimated anew if it was made for one that does not."""
    config, _ = require_config(chosen)
    if config.evaluates:
        return chosen
    cluster = known_cluster(chosen.request.inventory)
    config = config.model_copy(update={"evaluates": True})
    estimated = analytic_estimate(config, load_model(config.model), cluster, margin=chosen.request.margin, replays=True)
    return replace(chosen, config=config, estimate=estimated)


def weights_source(model: str, *, tokenizer: bool = False) -> Source:
    """Where weights (or the tokenizer) of ``model`` come from: the demo, a local folder, or the hub.

    Raises InputError for a path without weights.
    """
    if Path(model).absolute() == demo.model_path().absolute():
        return demo.tokenizer() if tokenizer else demo.model()
    path = user_path(model)
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
    if path.is_absolute() or model.startswith((".", "~")):
        hint = "a folder, or a hub id"
        raise InputError(f"there is no folder {path}", hint=hint, field="tokenizer" if tokenizer else "weights")
    return Source(kind="hub", location=hub_id(model))


def ranks_of(config: RunConfig, cluster: Cluster) -> dict[str, Any]:
    """The fields of a `TrainJob` that say which processes train ``config`` on ``cluster``."""
    alone = config.sharding == "none"
    ranks = 1 if alone else cluster.world_size
    here = 1 if alone else ranks // len(cluster.nodes)
    return {
        "world_size": ranks,
        "nproc_per_node": here,
        "device": "cpu" if cluster.gpus[0].kind == "cpu" else "cuda",
        "threads_per_process": cpu_threads(here),
    }


def cpu_threads(ranks: int) -> int:
    """Threads of each rank's CPU libraries: the cores, shared."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def prepare(job: TrainJob) -> Prepared:
    """What launching ``job`` would start and write."""
    return factory.prepare(job) if job.engine_env else engine.prepare(job)


def launch(
    job: TrainJob,
    chosen: Plan | None,
    on_event: OnEvent,
    patience: Patience = Patience(),  # noqa: B008 - immutable
    *,
    replaces: Replaces = "nothing",
) -> RunRecord:
    """Start the job, follow it to its end and return its record; the plan is kept beside it.

    Later plans for the same devices go by the record of a finished run, too. Raises RunFailedError if the run failed
    and could not recover.
    """
    engine.check(job)
    trackers.check_installed(job.trackers)
    check_devices(job)
    is_first = job.folder.node == 0
    start = factory.launch if job.engine_env else engine.launch
    kept = _kept(job, chosen if is_first else None)
    record = recovering.launch(job, on_event, patience, start=start, replaces=replaces, kept=kept)
    if is_first and (note := recording.recorded(record, ranks=job.world_size)):
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


def _kept(job: TrainJob, chosen: Plan | None) -> dict[str, str]:
    """Files that are put into the run's folder: the plan, and the config.json that random weights are made from."""
    run = RunDir(Path(job.run_dir))
    kept = {} if chosen is None else {run.plan.name: to_json(chosen)}
    if job.model.kind == "random":
        kept[f"{run.architecture.name}/config.json"] = architecture(job.config.model)
    return kept


def architecture(model: str) -> str:
    """The config.json that random weights of ``model`` are made from."""
    return json.dumps(load_hf_config(model), indent=2) + "\n"
