"""Tune: measure the plans that look best for a few steps each on this machine, and take the fastest."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ftplan import __version__
from ftplan.errors import InputError, RunFailedError
from ftplan.estimators.analytic import estimate
from ftplan.files import write_atomic
from ftplan.launcher.trials import Trial, Trialled, TrialsSetup, run_trials
from ftplan.planner.contenders import ALIKE, contenders
from ftplan.profiles import store
from ftplan.profiles.calibration import RecordedRun, RunFigures
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import load_model
from ftplan.results import Candidate, Compared, Plan, Reason, to_json
from ftplan.spec import Inventory
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.planning import require_config
from ftplan.workflows.running import architecture, cpu_threads, require_gpus

TRIALS: Final = 4
BUDGET_SECONDS: Final = 110.0
"""With what it takes to plan and to end processes, tuning stays under two minutes."""
FOLDER: Final = Path("ftplan-tune")

STEPS: Final = 2
"""Steps that are timed of each trial, after as many that are not."""


@dataclass(frozen=True)
class Tried:
    """A candidate with what a trial of it showed."""

    candidate: Candidate
    result: Trialled


@dataclass(frozen=True)
class Tuned:
    """The plan that was fastest, with all that was tried; ``folder`` keeps the results."""

    plan: Plan
    tried: tuple[Tried, ...]
    seconds: float
    folder: str


OnTried = Callable[[Tried], None]


def tune(
    chosen: Plan,
    on_tried: OnTried,
    *,
    trials: int = TRIALS,
    budget_seconds: float = BUDGET_SECONDS,
    folder: Path | None = None,
) -> Tuned:
    """Measure ``chosen`` and what may be as fast, at most ``trials``, before the budget is spent.

    Random weights and tokens, so that nothing needs to be downloaded. What was measured is recorded, and later plans
    for these devices go by it; the same call again goes on where one was interrupted. Raises InputError if this machine
    has not the devices of the plan, RunFailedError if nothing could be measured.
    """
    started = time.monotonic()
    config, _ = require_config(chosen)
    cluster = known_cluster(chosen.request.inventory)
    require_devices(chosen.request.inventory, cluster)
    tried_configs = contenders(chosen, load_model(config.model), cluster, trials)
    candidates = {_trial_id(one): one for one in tried_configs}
    folder = (folder or FOLDER) / _key(chosen)
    tried: list[Tried] = []
    known = {run.run_id for run in store.load().runs}

    def take(result: Trialled) -> None:
        one = Tried(candidates[result.trial], result)
        tried.append(one)
        on_tried(one)
        run = _recorded(f"tune-{folder.name}-{result.trial}", one, cluster)
        if result.status == "measured" and run.run_id not in known:
            store.keep_run(run)

    asked = [
        Trial(id=name, config=one.config, cap_bytes=_cap_bytes(chosen.request.inventory))
        for name, one in candidates.items()
    ]
    run_trials(
        asked,
        _setup(config.model, folder, cluster),
        folder=folder,
        deadline=started + budget_seconds,
        on_result=take,
    )
    return Tuned(_fastest(chosen, tried, cluster), tuple(tried), time.monotonic() - started, str(folder))


def require_devices(inventory: Inventory, cluster: Cluster) -> None:
    """Raise InputError for devices that are not this machine's."""
    if len(cluster.nodes) > 1:
        raise InputError("only the devices of one machine can be tried", hint="tune on one of the nodes", field="gpus")
    if cluster.gpus[0].kind != "cpu":
        require_gpus(inventory.text, cluster.world_size)


def _setup(model: str, folder: Path, cluster: Cluster) -> TrialsSetup:
    config = folder / "architecture" / "config.json"
    write_atomic(config, architecture(model))
    ranks = cluster.world_size
    return TrialsSetup(
        architecture=str(config.parent.absolute()),
        world_size=ranks,
        device="cpu" if cluster.gpus[0].kind == "cpu" else "cuda",
        warmup_steps=STEPS,
        steps=STEPS,
        threads_per_process=cpu_threads(ranks),
    )


def _key(chosen: Plan) -> str:
    """What makes a plan's trials comparable with those of an interrupted call: the question, all that its trials have
    in common, and this version.
    """
    config, _ = require_config(chosen)
    asked = chosen.request.model_dump_json() + config.model_dump_json(include=set(ALIKE)) + __version__
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def _trial_id(candidate: Candidate) -> str:
    """What tells a trial from the others of its folder, whatever place it has among them."""
    config = candidate.config
    kept = "checkpointing" if config.gradient_checkpointing else "none"
    batch = f"{config.micro_batch}x{config.accumulation}"
    return f"{config.sharding}-{config.offload}-{kept}-{config.kernels}-{batch}"


def _cap_bytes(inventory: Inventory) -> int | None:
    """What a process may take of each device, where the inventory states less than the cards have."""
    if inventory.text.strip().lower() == "local" or inventory.groups[0].device == "cpu":
        return None
    return inventory.groups[0].memory_bytes


def _fastest(chosen: Plan, tried: list[Tried], cluster: Cluster) -> Plan:
    measured = [one for one in tried if one.result.status == "measured" and one.result.tokens_per_second]
    if not measured:
        why = next((one.result.message for one in tried if one.result.message), "the budget was too small")
        raise RunFailedError("nothing could be measured", hint=why)
    best = max(measured, key=_speed)
    config = best.candidate.config
    told = best.candidate.estimate
    if config != chosen.config or told is None:
        model = load_model(config.model)
        told = estimate(config, model, cluster, margin=chosen.request.margin, replays=True)
    reasons = (*(() if config != chosen.config else chosen.reasons), _reason(best, measured))
    return replace(chosen, config=config, estimate=told, reasons=reasons)


def _speed(tried: Tried) -> float:
    return tried.result.tokens_per_second or 0.0


def _reason(best: Tried, measured: list[Tried]) -> Reason:
    others = tuple(
        Compared(one.result.trial, _speed(one) / _speed(best), one.result.process_bytes)
        for one in measured
        if one is not best
    )
    because = f"the fastest of {len(measured)} that were measured here: {_speed(best):,.0f} tokens/s"
    return Reason("tune", best.result.trial, because, others)


def _recorded(run_id: str, tried: Tried, cluster: Cluster) -> RecordedRun:
    config, told = tried.candidate.config, tried.candidate.estimate
    assert told is not None
    basis, result = told.basis, tried.result
    return RecordedRun(
        run_id=run_id,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ftplan=__version__,
        devices=basis.devices,
        calibrated_at=tuple(one.measured_at for one in basis.calibrations),
        ranks=1 if config.sharding == "none" else cluster.world_size,
        model=config.model,
        method=config.method,
        sharding=config.sharding,
        offload=config.offload,
        predicted=RunFigures(told.process_bytes - basis.excess_bytes, None, told.step_seconds / basis.step_ratio),
        measured=RunFigures(result.process_bytes, None, result.step_seconds),
    )


def tuned_document(tuned: Tuned) -> Mapping[str, object]:
    """The answer as JSON values."""
    return {
        "plan": json.loads(to_json(tuned.plan)),
        "seconds": tuned.seconds,
        "folder": tuned.folder,
        "tried": [
            {
                "config": one.candidate.config.model_dump(mode="json"),
                "predicted_step_seconds": one.candidate.estimate.step_seconds if one.candidate.estimate else None,
                "result": json.loads(to_json(one.result)),
            }
            for one in tuned.tried
        ],
    }
