"""Preflight: whether a run can start here and now. Every run asks the part that costs no process; see `examining`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ftplan.errors import DoesNotFitError, InputError
from ftplan.estimators.analytic import estimate as analytic_estimate
from ftplan.estimators.checkpoint_size import CheckpointSize, checkpoint_size
from ftplan.estimators.workload import Place, Workload
from ftplan.launcher.job import Source, TrainJob
from ftplan.launcher.preflight import machine
from ftplan.launcher.preflight.checks import judge
from ftplan.launcher.preflight.facts import Facts
from ftplan.launcher.preflight.findings import FITTING, Finding, errors
from ftplan.launcher.preflight.installed import installed
from ftplan.launcher.preflight.needs import Needs
from ftplan.launcher.preflight.weights import check_weights
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.rules import needed_packages
from ftplan.profiles.cards_now import cards_now
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import load_model
from ftplan.results import Estimate, Plan
from ftplan.spec import RunConfig
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.planning import require_config

TOKENIZER_FILES: Final = ("tokenizer*", "vocab*", "merges.txt", "chat_template*", "special_tokens_map.json")


def before_run(job: TrainJob, plan: Plan | None) -> tuple[Finding, ...]:
    """What would keep ``job`` from running here and now; without its plan, memory is estimated anew."""
    needs = needs_of_job(job, plan.estimate if plan is not None else None)
    return (*judge(observed(Path(job.run_dir)), needs), *check_weights(job.model))


def refuse(findings: Sequence[Finding]) -> None:
    """Raise for findings that are errors: InputError if something is missing, DoesNotFitError if it does not fit."""
    grave = errors(findings)
    if not grave:
        return
    names = ", ".join(dict.fromkeys(finding.check for finding in grave))
    hint = "--force starts it all the same; ftplan doctor looks closer"
    if all(finding.check in FITTING for finding in grave):
        raise DoesNotFitError(f"the run does not fit here now: {names}", hint=hint)
    raise InputError(f"the run cannot start here: {names}", hint=hint)


def observed(run_dir: Path) -> Facts:
    """The machine and the packages now; torch is not asked."""
    return Facts(
        host=machine.host(),
        installed=installed(),
        cards=cards_now(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        disk=machine.disk(run_dir),
    )


def needs_of_plan(plan: Plan, *, keep: int) -> Needs:
    """What a plan needs that keeps ``keep`` checkpoints; raises DoesNotFitError for a plan without a configuration."""
    config, estimate = require_config(plan)
    return _needs(config, estimate, known_cluster(plan.request.inventory), keep, tokenizer=None)


def needs_of_job(job: TrainJob, told: Estimate | None) -> Needs:
    """What a job needs, of which ``told`` is the estimate; None: estimated anew."""
    cluster = known_cluster(parse_inventory(job.inventory))
    if told is None:
        told = analytic_estimate(job.config, load_model(job.config.model), cluster, replays=True)
    needs = _needs(job.config, told, cluster, job.save_total_limit, job.tokenizer)
    return replace(needs, saves=job.save_steps is not None, foreign=job.engine_env is not None)


def _needs(config: RunConfig, told: Estimate, cluster: Cluster, keep: int, tokenizer: Source | None) -> Needs:
    place = Place(config, cluster)
    return Needs(
        config=config,
        card_bytes=() if place.on_cpu else tuple(rank.needed_bytes for rank in told.ranks[: place.ranks_per_node]),
        host_bytes=told.host.needed_bytes,
        packages=needed_packages(config),
        size=_checkpoint_size(config, cluster, tokenizer),
        keep=keep,
        nodes=len(cluster.nodes),
    )


def _checkpoint_size(config: RunConfig, cluster: Cluster, tokenizer: Source | None) -> CheckpointSize | None:
    try:
        model = load_model(config.model)
    except InputError:  # the plan was made where the model's config.json lay, and trains here from --weights
        return None
    return checkpoint_size(Workload(config, model, cluster), tokenizer_bytes=_tokenizer_bytes(tokenizer))


def _tokenizer_bytes(source: Source | None) -> int | None:
    """Size of the tokenizer's files where they are on this machine."""
    if source is None or source.kind == "hub":
        return None
    folder = Path(source.location)
    return sum(path.stat().st_size for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file())
