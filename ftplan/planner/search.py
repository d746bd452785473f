"""Search: enumerate, reject, estimate, rank. The answer is a `Plan`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final

from ftplan.estimators.analytic import estimate
from ftplan.estimators.training_time import with_training
from ftplan.planner.batch import check_global_batch, check_pinned_split
from ftplan.planner.explain import NEAR_EQUAL, WORTH_MACHINERY, explain
from ftplan.planner.rules import first_rejection, memory_rejection
from ftplan.planner.space import OFFLOADS, SHARDINGS, Tier, candidates, tiers
from ftplan.profiles.schema import Cluster, ModelProfile
from ftplan.results import Candidate, Estimate, Plan, RejectedGroup, SearchStats
from ftplan.spec import PlanRequest, RunConfig

ALTERNATIVES: Final = 5
SIMPLEST_FIRST: Final = ("none", *SHARDINGS)


@dataclass
class Findings:
    """What the search has seen: candidates that fit, in the order of their tiers, and those that do not.

    ``waiting`` are tiers not looked at, because something fits in a better one.
    """

    waiting: list[Tier] = field(default_factory=list)
    tiers: list[tuple[Tier, list[Candidate]]] = field(default_factory=list)
    rejected: list[Candidate] = field(default_factory=list)
    looked_at: int = 0

    @property
    def best_tier(self) -> tuple[Tier, list[Candidate]] | None:
        """The first tier in which something fits."""
        return next(((tier, fitting) for tier, fitting in self.tiers if fitting), None)

    @property
    def methods_that_fit(self) -> set[str]:
        """The methods with a candidate that fits."""
        return {tier.method for tier, fitting in self.tiers if fitting}

    def best_for(self, request: PlanRequest) -> tuple[Tier, list[Candidate]] | None:
        """The tier to choose from: the first in which something fits, or that with least memory if that is asked."""
        if request.objective != "memory":
            return self.best_tier
        fitting = [(tier, candidates) for tier, candidates in self.tiers if candidates]
        return min(fitting, key=lambda pair: min(map(_needed, pair[1])), default=None)


def _faster_method(chosen: Candidate, found: Findings) -> Candidate | None:
    """The fastest candidate of another method, if it is clearly faster than the chosen one."""
    others = [one for tier, fitting in found.tiers for one in fitting if tier.method != chosen.config.method]
    fastest = max(others, key=_speed, default=None)
    return fastest if fastest and _speed(fastest) > (1 + NEAR_EQUAL) * _speed(chosen) else None


def plan(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Plan:
    """The best configuration for ``request``, with reasons, alternatives and what was rejected.

    Raises BatchError if the global batch does not split over the ranks, InputError for pins that name nothing.
    """
    started = time.perf_counter()
    ranks = 1 if request.pins.get("sharding") == "none" else cluster.world_size
    check_pinned_split(check_global_batch(request.global_batch, ranks), request.pins)
    found = search(request, model, cluster)
    best = _replayed_best(found, request, model, cluster)
    stats = SearchStats(found.looked_at, time.perf_counter() - started)
    rejections = tuple(_grouped(found.rejected))
    if best is None:
        return Plan(request, request.global_batch, None, None, (), (), rejections, stats)
    tier, ranked = best
    chosen = ranked[0]
    faster = _faster_method(chosen, found)
    reasons = explain(chosen, ranked, found.rejected, faster, tier, request, cluster)
    others = tuple(_trained(one, request, model, cluster) for one in _alternatives(ranked, found, request))
    told = _estimate(_trained(chosen, request, model, cluster))
    return Plan(request, request.global_batch, chosen.config, told, reasons, others, rejections, stats)


def _trained(candidate: Candidate, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Candidate:
    """``candidate`` with time and cost of the whole training, if they are asked for."""
    if request.training is None:
        return candidate
    told = with_training(_estimate(candidate), request.training, candidate.config, model, cluster)
    return replace(candidate, estimate=told)


def _replayed_best(
    found: Findings, request: PlanRequest, model: ModelProfile, cluster: Cluster
) -> tuple[Tier, list[Candidate]] | None:
    """The tier to choose from and its candidates, of which the first fits in the simulated allocator too.

    What does not is rejected, and where nothing is left the tiers that were passed over get their turn. The search
    itself goes by a fit of what the allocator wastes.
    """
    while True:
        best = found.best_for(request)
        if best is None:
            if not found.waiting:
                return None
            _look(found, request, model, cluster)
            continue
        tier, fitting = best
        ranked = rank(fitting, request)
        estimated = estimate(ranked[0].config, model, cluster, margin=request.margin, replays=True)
        rejection = memory_rejection(estimated, request.margin)
        chosen = Candidate(ranked[0].config, estimated, rejection)
        if rejection is None:
            return tier, [chosen, *ranked[1:]]
        fitting[:] = [one for one in fitting if one is not ranked[0]]
        found.rejected.append(chosen)


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
        fitting = [one for one in _examined(tier, request, model, cluster, found) if one.rejection is None]
        found.tiers.append((tier, fitting))


def _examined(
    tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster, found: Findings
) -> Iterator[Candidate]:
    """Each candidate with its estimate or rejection; larger micro-batches of what does not fit are passed by."""
    for _, family in groupby(candidates(tier, request, model, cluster), key=_family):
        for config in sorted(family, key=lambda config: config.micro_batch):
            candidate = examine(config, request, model, cluster)
            found.looked_at += 1
            if candidate.rejection is not None:
                found.rejected.append(candidate)
            yield candidate
            if candidate.rejection is not None:
                break


def _family(config: RunConfig) -> tuple[str, str, bool, bool]:
    """Configurations in which a larger micro-batch never needs less: accumulating costs memory of its own."""
    return (config.sharding, config.offload, config.gradient_checkpointing, config.accumulation > 1)


def _kind(config: RunConfig) -> tuple[str, str, str, bool]:
    return (config.method, config.sharding, config.offload, config.gradient_checkpointing)


def examine(config: RunConfig, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Candidate:
    """One configuration through the rules and the estimator."""
    rejection = first_rejection(config, model, cluster)
    if rejection is not None:
        return Candidate(config, None, rejection)
    estimated = estimate(config, model, cluster, margin=request.margin)
    return Candidate(config, estimated, memory_rejection(estimated, request.margin))


def rank(fitting: Iterable[Candidate], request: PlanRequest) -> list[Candidate]:
    """Best first by the objective.

    For speed: the simplest of those that are not clearly slower than the fastest; of these, among near equals, the one
    that needs least memory; then the others by speed.
    """
    if request.objective in ("memory", "headroom"):
        return sorted(fitting, key=lambda one: (_needed(one), -_speed(one)))
    ordered = sorted(fitting, key=_speed, reverse=True)
    if not ordered:
        return []
    contenders = [one for one in ordered if _speed(one) >= (1 - WORTH_MACHINERY) * _speed(ordered[0])]
    simplest = min(_moving_parts(one.config) for one in contenders)
    plain = [one for one in contenders if _moving_parts(one.config) == simplest]
    near = sorted((one for one in plain if _speed(one) >= (1 - NEAR_EQUAL) * _speed(plain[0])), key=_needed)
    return near + [one for one in ordered if all(one is not other for other in near)]


def _moving_parts(config: RunConfig) -> tuple[int, int]:
    """How much machinery a configuration needs: plain before DDP before sharding, no offload before offload."""
    return (SIMPLEST_FIRST.index(config.sharding), OFFLOADS.index(config.offload))


def _estimate(candidate: Candidate) -> Estimate:
    assert candidate.estimate is not None
    return candidate.estimate


def _speed(candidate: Candidate) -> float:
    return _estimate(candidate).tokens_per_second


def _needed(candidate: Candidate) -> int:
    return _estimate(candidate).needed_bytes


def _alternatives(ranked: list[Candidate], found: Findings, request: PlanRequest) -> tuple[Candidate, ...]:
    """The best of every other kind (method, sharding, offload, checkpointing).

    Those that are faster or need less memory than the chosen one come before the dominated, the first of a method and
    sharding before its variants, and the methods take turns.
    """
    chosen = ranked[0]
    best_of_kind: dict[object, Candidate] = {}
    others = [rank(fitting, request) for _, fitting in found.tiers]
    for candidate in [*ranked, *(one for fitting in others for one in fitting)]:
        best_of_kind.setdefault(_kind(candidate.config), candidate)
    rest = [one for one in best_of_kind.values() if one is not chosen]
    seen = {(chosen.config.method, chosen.config.sharding)}
    of_method = Counter({chosen.config.method: 1})
    order = []
    for one in rest:
        method, kind = one.config.method, (one.config.method, one.config.sharding)
        order.append((_is_dominated(one, chosen), kind in seen, of_method[method]))
        of_method[method] += kind not in seen
        seen.add(kind)
    return tuple(rest[index] for index in sorted(range(len(rest)), key=order.__getitem__)[:ALTERNATIVES])


def _is_dominated(candidate: Candidate, chosen: Candidate) -> bool:
    same_method = candidate.config.method == chosen.config.method
    return same_method and _speed(candidate) <= _speed(chosen) and _needed(candidate) >= _needed(chosen)


def _grouped(rejected: Iterable[Candidate]) -> Iterator[RejectedGroup]:
    """Rejections by rule, method and sharding, nearest miss first; rules that are no matter of bytes come last."""
    groups: dict[tuple[str, str, str], list[Candidate]] = {}
    for candidate in rejected:
        assert candidate.rejection is not None
        key = (candidate.rejection.rule, candidate.config.method, candidate.config.sharding)
        groups.setdefault(key, []).append(candidate)
    nearest = [(min(group, key=_lacking), len(group)) for group in groups.values()]
    for candidate, count in sorted(nearest, key=lambda pair: _lacking(pair[0])):
        assert candidate.rejection is not None
        yield RejectedGroup(candidate.rejection, candidate.config, count)


def _lacking(candidate: Candidate) -> float:
    lacking = candidate.rejection.lacking_bytes if candidate.rejection else None
    return float("inf") if lacking is None else float(lacking)
