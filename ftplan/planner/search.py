"""Search: enumerate, reject, estimate, rank. The answer is a `Plan`."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final

from ftplan.estimators.analytic import estimate, held_bytes
from ftplan.estimators.training_time import with_training
from ftplan.planner.advice import advise
from ftplan.planner.batch import check_batch
from ftplan.planner.explain import Choice, explain
from ftplan.planner.findings import Findings, Looked
from ftplan.planner.ranking import alternatives, estimate_of, faster_method, grouped, needed, pareto, rank, speed
from ftplan.planner.rules import (
    first_rejection,
    format_rejection,
    memory_rejection,
    package_rejection,
    weights_rejection,
)
from ftplan.planner.space import DEFAULT_RANK, DEFAULT_TARGETS, HIGHER_RANKS, Family, Tier, families, tiers
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Candidate, Plan, RejectedGroup, SearchStats
from ftplan.spec import PlanRequest, RunConfig

FAR_TOO_LARGE: Final = 1.3
"""Weights and states of more than this part of a card need no estimate; nearer misses get one, to be told exactly."""

NEAR_MISS: Final = 1.15
"""What needs up to this part of what is offered by the fit, which is cautious, may fit by the replay."""

RANK_MAY_COST: Final = 0.05
"""Speed that a higher rank may cost where the highest is asked for."""


def plan(request: PlanRequest, model: ModelProfile, cluster: Cluster, *, replays_from: float = 0.0) -> Plan:
    """The best configuration for ``request``, with reasons, alternatives and what was rejected.

    What is chosen is played through the simulated allocator where it needs at least ``replays_from`` of a card.
    Raises BatchError if the global batch does not split over the ranks, InputError for pins that name nothing.
    """
    return plan_and_findings(request, model, cluster, replays_from=replays_from)[0]


def plan_and_findings(
    request: PlanRequest, model: ModelProfile, cluster: Cluster, *, replays_from: float = 0.0
) -> tuple[Plan, Findings]:
    """`plan`, with all that it was chosen from."""
    with without_collections():
        return _plan(request, model, cluster, replays_from)


@contextmanager
def without_collections() -> Iterator[None]:
    """Without Python's cyclic collector, which looks at all that a search remembers: a third of its time.

    Several threads may search at once: it is as it was before when the last of them is done.
    """
    with _COLLECTOR.lock:
        if not _COLLECTOR.searches:
            _COLLECTOR.was_enabled = gc.isenabled()
            gc.disable()
        _COLLECTOR.searches += 1
    try:
        yield
    finally:
        with _COLLECTOR.lock:
            _COLLECTOR.searches -= 1
            if not _COLLECTOR.searches and _COLLECTOR.was_enabled:
                gc.enable()


@dataclass
class _Collector:
    """How many searches go on without it, and whether it was enabled before the first."""

    lock: Lock = field(default_factory=Lock)
    searches: int = 0
    was_enabled: bool = False


_COLLECTOR: Final = _Collector()


def _plan(request: PlanRequest, model: ModelProfile, cluster: Cluster, replays_from: float) -> tuple[Plan, Findings]:
    started = time.perf_counter()
    check_batch(request)
    found = search(request, model, cluster)
    best = _replayed_best(found, request, model, cluster, replays_from)
    if best is None:
        stats = SearchStats(found.looked_at, time.perf_counter() - started, found.estimated)
        return Plan(request, request.global_batch, None, None, (), (), grouped(found.rejected), stats), found
    tier, ranked = best
    if request.highest_rank:
        tier, ranked = _highest_rank(tier, ranked, found, request, model, cluster)
    chosen = ranked[0]
    choice = Choice(chosen, tuple(ranked), found.rejected, faster_method(chosen, found.fitting), tier)
    others = alternatives(ranked, (looked.fitting for looked in found.tiers), request)
    told = _trained(chosen, request, model, cluster)
    stats = SearchStats(found.looked_at, time.perf_counter() - started, found.estimated)
    made = Plan(
        request,
        request.global_batch,
        chosen.config,
        estimate_of(told),
        reasons=explain(choice, request, cluster),
        alternatives=tuple(_trained(one, request, model, cluster) for one in others),
        rejections=grouped(found.rejected),
        search=stats,
        pareto=pareto([chosen, *(one for one in found.fitting if one.config != chosen.config)]),
        advice=advise(told, request, model, cluster),
    )
    return made, found


def _trained(candidate: Candidate, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Candidate:
    """``candidate`` with time and cost of the whole training, if they are asked for."""
    if request.training is None:
        return candidate
    told = with_training(estimate_of(candidate), request.training, candidate.config, model, cluster)
    return replace(candidate, estimate=told)


def _replayed_best(
    found: Findings, request: PlanRequest, model: ModelProfile, cluster: Cluster, replays_from: float
) -> tuple[Tier, list[Candidate]] | None:
    """The tier to choose from and its candidates, of which the first fits in the simulated allocator too.

    What does not is rejected, and where nothing is left the tiers that were passed over get their turn. The search
    itself goes by a fit of what the allocator wastes: what that puts just beyond the card is replayed where it would be
    the choice.
    """
    while True:
        looked = found.best_for(request)
        if looked is None:
            if not found.waiting:
                return None
            _look(found, request, model, cluster)
            continue
        ranked = rank([*looked.fitting, *looked.near], request)
        best = ranked[0]
        others = [one for one in ranked[1:] if one.rejection is None]
        if best.rejection is None and needed(best) < replays_from * estimate_of(best).capacity_bytes:
            return looked.tier, [best, *others]
        chosen = replayed(best.config, request, model, cluster)
        (looked.fitting if best.rejection is None else looked.near).remove(best)
        if chosen.rejection is None:
            looked.fitting.append(chosen)
            return looked.tier, [chosen, *others]
        found.refuse(chosen)
        _drop_what_lacks_as_much(chosen, best, looked, found)


def _drop_what_lacks_as_much(refused: Candidate, fitted: Candidate, looked: Looked, found: Findings) -> None:
    """Reject what cannot fit either: of those that shard as ``refused`` does, what the fit says needs as much or more,
    or would need too much if as many bytes came on top.

    A replay takes seconds where a model is large, and there may be dozens of micro-batches.
    """
    assert refused.rejection is not None
    available = refused.rejection.available_bytes
    if refused.rejection.rule != "memory" or available is None:
        return
    lacking = needed(refused) - needed(fitted)
    for some in (looked.fitting, looked.near):
        for one in list(some):
            alike = (one.config.sharding, one.config.offload) == (refused.config.sharding, refused.config.offload)
            more = needed(one) >= needed(fitted) or needed(one) + lacking > available
            if alike and more:
                some.remove(one)
                bytes_needed = max(needed(one) + lacking, available + 1)
                found.refuse(replace(one, rejection=replace(refused.rejection, needed_bytes=bytes_needed)))


def replayed(config: RunConfig, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Candidate:
    """``config`` with every allocation played through the simulated allocator."""
    estimated = estimate(config, model, cluster, margin=request.margin, replays=True)
    return Candidate(config, estimated, memory_rejection(estimated, request.margin))


def _highest_rank(
    tier: Tier,
    ranked: list[Candidate],
    found: Findings,
    request: PlanRequest,
    model: ModelProfile,
    cluster: Cluster,
) -> tuple[Tier, list[Candidate]]:
    """The highest rank that fits and costs little speed, with everything but the batch as it was chosen."""
    chosen = ranked[0]
    if (tier.lora_rank, tier.lora_targets) != (DEFAULT_RANK, DEFAULT_TARGETS) or not chosen.config.trains_lora:
        return tier, ranked
    kept = ("sharding", "offload", "gradient_checkpointing", "kernels")
    asked = request.model_copy(
        update={"pins": {**request.pins, **{name: getattr(chosen.config, name) for name in kept}}}
    )
    for lora_rank in HIGHER_RANKS:
        higher = replace(tier, lora_rank=lora_rank)
        looked = _looked(higher, asked, model, cluster, found)
        for one in rank(looked.fitting, asked):
            if speed(one) < (1 - RANK_MAY_COST) * speed(chosen):
                break
            best = replayed(one.config, request, model, cluster)
            if best.rejection is None:
                found.tiers.append(looked)
                return higher, [best, *ranked]
        found.tiers.append(looked)
    return tier, ranked


def search(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Findings:
    """Look at tiers from the best down to the first that fits, and at the other methods for comparison."""
    found = Findings(waiting=list(tiers(request)))
    _look(found, request, model, cluster)
    return found


def _look(found: Findings, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> None:
    """Look at the tiers that wait, but for those that something better makes needless: they go on waiting."""
    waiting, found.waiting = found.waiting, []
    for tier in waiting:
        if tier.method in found.methods_that_fit or (found.best_tier and "optimizer+params" in tier.offloads[:1]):
            found.waiting.append(tier)
            continue
        found.tiers.append(_looked(tier, request, model, cluster, found))


def _looked(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster, found: Findings) -> Looked:
    looked = Looked(tier, [], [])
    for one in examined(tier, request, model, cluster, found):
        (looked.fitting if one.rejection is None else looked.near).append(one)
    return looked


def examined(
    tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster, found: Findings
) -> Iterator[Candidate]:
    """Each candidate of ``tier`` that fits or nearly does; in ``found`` the others are noted with their reason."""
    for family in families(tier, request, model, cluster):
        found.looked_at += len(family.splits)
        rejection = _of_family(family, request, model, cluster)
        if rejection is not None:
            found.refused.append(rejection)
            continue
        for tried, config in enumerate(family.members()):
            candidate = examine(config, request, model, cluster)
            found.estimated += 1
            if candidate.rejection is not None and not _may_fit(candidate):
                found.refuse(candidate, len(family.splits) - tried)
                break
            yield candidate


def _may_fit(candidate: Candidate) -> bool:
    """Whether what lacks memory by the fit may have it in truth: its tensors and what is beside them fit."""
    rejection, told = candidate.rejection, candidate.estimate
    if rejection is None or told is None or rejection.rule != "memory" or rejection.available_bytes is None:
        return False
    at_least = told.peak_allocated_bytes + told.process_bytes - told.peak_reserved_bytes
    return at_least <= rejection.available_bytes and told.needed_bytes <= NEAR_MISS * rejection.available_bytes


def _of_family(family: Family, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> RejectedGroup | None:
    """What rejects a whole family without an estimate: a rule, a missing package, or weights far too large."""
    config = family.smallest
    rejection = (
        first_rejection(config, model, cluster)
        or package_rejection(config, request.missing_packages)
        or format_rejection(config, request)
    )
    if rejection is None:
        offered = min(gpu.usable_bytes for gpu in cluster.gpus)
        held = held_bytes(config, model, cluster)
        if held > FAR_TOO_LARGE * offered:
            rejection = weights_rejection(held, offered)
    return None if rejection is None else RejectedGroup(rejection, config, len(family.splits))


def examine(config: RunConfig, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Candidate:
    """One configuration through the rules and the estimator."""
    rejection = first_rejection(config, model, cluster)
    if rejection is not None:
        return Candidate(config, None, rejection)
    estimated = estimate(config, model, cluster, margin=request.margin)
    return Candidate(config, estimated, memory_rejection(estimated, request.margin))
