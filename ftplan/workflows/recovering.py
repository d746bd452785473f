"""Launch a job and keep it going: out of memory it falls back to the next plan, after a dead worker it starts again.

Every recovery keeps what is trained and the global batch, goes on from the newest complete checkpoint, and is told and
recorded. What would only fail again ends the run in a state from which it can be resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from ftplan.errors import InputError, RunFailedError
from ftplan.estimators.analytic import estimate
from ftplan.files import append_line
from ftplan.launcher import checkpoints, engine
from ftplan.launcher.engine import OnEvent, Replaces
from ftplan.launcher.events import Recovering, Value, to_line
from ftplan.launcher.failures import OUT_OF_MEMORY
from ftplan.launcher.job import TrainJob
from ftplan.launcher.llamafactory.files import can_say
from ftplan.launcher.records import RunDir
from ftplan.planner.falling_back import fallback
from ftplan.planner.inventory import parse_inventory
from ftplan.profiles.models import load_model
from ftplan.results import RunRecord
from ftplan.spec import Inventory, RunConfig
from ftplan.workflows import promises
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.moving import missing_packages
from ftplan.workflows.planning import load_plan

PASSING: Final = frozenset({"killed", "lost_rank"})
"""What may not happen again: a worker that something killed, a connection that broke."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a run recovers by itself: changes of plan in all, and restarts between two checkpoints."""

    fallbacks: int = 3
    restarts: int = 2


@dataclass(frozen=True, slots=True)
class _Next:
    """How to go on: the job, and the step it goes on from (None: from its start)."""

    job: TrainJob
    from_step: int | None


class Start(Protocol):
    """How an attempt is launched."""

    def __call__(self, job: TrainJob, *, on_event: OnEvent, replaces: Replaces, kept: Mapping[str, str]) -> RunRecord:
        """As `engine.launch` does it."""


def launch(
    job: TrainJob,
    on_event: OnEvent,
    patience: Patience = Patience(),
    *,
    start: Start = engine.launch,
    replaces: Replaces = "nothing",
    kept: Mapping[str, str] = MappingProxyType({}),
) -> RunRecord:
    """``start``, and again after what can be recovered from; raises RunFailedError for the rest.

    ``replaces`` is for the first attempt. A job on several machines is not recovered here: each of them would have to
    take the same decision.
    """
    job = job.absolute()
    run = job.folder
    fallbacks = restarts = 0
    reached = None
    while True:
        try:
            return start(job, on_event=on_event, replaces=replaces, kept=kept)
        except RunFailedError as error:
            step = _saved_step(run)
            restarts = 0 if step != reached else restarts
            following: _Next | None = None
            if job.rendezvous is not None:
                raise
            if _lacks_device_memory(error, job) and fallbacks < patience.fallbacks:
                fallbacks += 1
                following = _smaller(job, run, step)
            elif error.kind in PASSING and restarts < patience.restarts:
                restarts += 1
                following = _Next(job, step)
            if following is None:
                raise
            changed = _changed(job.config, following.job.config)
            ahead = following.job
            told = Recovering(
                error.kind, error.message, following.from_step, changed, ahead.predicted, ahead.predicted_ranks
            )
            append_line(run.metrics, to_line(told).decode().rstrip())
            on_event(told)
            reached, replaces = step, "everything"
            job = ahead.model_copy(update={"resume": following.from_step is not None})


def _lacks_device_memory(error: RunFailedError, job: TrainJob) -> bool:
    """Whether a smaller plan may help. Where a GPU's host lacks memory, what takes less of the GPU takes more of it."""
    return error.kind in (OUT_OF_MEMORY if job.device == "cpu" else {"out_of_memory"})


def _smaller(job: TrainJob, run: RunDir, step: int | None) -> _Next | None:
    """The job with the next plan: one that can resume the checkpoint at ``step``, else one that begins anew.

    None where there is none, or where it cannot be told: the model's config.json may be on another machine.
    """
    try:
        inventory = _inventory(job, run)
        model, cluster = load_model(job.config.model), known_cluster(inventory)
    except InputError:
        return None
    told = estimate(job.config, model, cluster, margin=job.margin, replays=True)
    for from_step in dict.fromkeys((step, None)):
        found = fallback(
            job.config,
            told,
            model,
            cluster,
            margin=job.margin,
            same_sharding=from_step is not None,
            missing_packages=() if job.engine_env else missing_packages(),
            allowed=lambda config: not job.engine_env or can_say(job.model_copy(update={"config": config})),
        )
        if found is not None:
            break
    else:
        return None
    smaller, expected = found
    promised = promises.fields(smaller, expected, inventory)
    return _Next(job.model_copy(update={"config": smaller, **promised}), from_step)


def _inventory(job: TrainJob, run: RunDir) -> Inventory:
    """The devices that the job is for; with the host memory and links that were stated, if its plan was for them."""
    planned = load_plan(run.plan).request.inventory if run.plan.exists() else None
    return planned if planned is not None and planned.text == job.inventory else parse_inventory(job.inventory)


def _saved_step(run: RunDir) -> int | None:
    saved = checkpoints.latest_complete(run.checkpoints)
    return saved.step if saved else None


def _changed(old: RunConfig, new: RunConfig) -> dict[str, tuple[Value, Value]]:
    before, after = old.model_dump(), new.model_dump()
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
