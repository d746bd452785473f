"""Which of the configurations that fit is best, which else a user should see, and which of them are worth a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from ftplan.planner.space import KERNELS, OFFLOADS, SHARDINGS
from ftplan.results import Candidate, Estimate, Point, RejectedGroup
from ftplan.spec import PlanRequest, RunConfig

NEAR_EQUAL: Final = 0.03
"""Speeds this close are told as equal."""

SAME_SPEED: Final = 0.01
"""Among speeds this close the smaller configuration is chosen."""

WORTH_MACHINERY: Final = 0.1
"""Sharding must be this much faster to be chosen over less: estimates of a step are no better than that."""

WORTH_OFFLOAD: Final = 0.3
"""On several cards offload must be this much faster, because estimates know least about what the host and its link do;
on one card, where it shares no work, it is for what does not fit."""

BY_MEMORY: Final = ("memory", "headroom")
"""Objectives that rank by bytes instead of speed."""

ALTERNATIVES: Final = 5
SIMPLEST_FIRST: Final = ("none", *SHARDINGS)


def rank(fitting: Iterable[Candidate], request: PlanRequest) -> list[Candidate]:
    """Best first by the objective.

    For speed: the simplest of those that are not clearly slower than the fastest; of these, among equals, the one that
    needs no further package and least memory; then the others by speed.
    """
    if request.objective in BY_MEMORY:
        return sorted(fitting, key=lambda one: (needed(one), -speed(one)))
    ordered = sorted(fitting, key=speed, reverse=True)
    if not ordered:
        return []
    contenders = [one for one in ordered if one.config.offload == "none"] or ordered
    if len(estimate_of(ordered[0]).ranks) > 1 and speed(ordered[0]) >= (1 + WORTH_OFFLOAD) * speed(contenders[0]):
        contenders = ordered
    contenders = [one for one in contenders if speed(one) >= (1 - WORTH_MACHINERY) * speed(contenders[0])]
    simplest = min(_moving_parts(one.config) for one in contenders)
    plain = [one for one in contenders if _moving_parts(one.config) == simplest]
    near = [one for one in plain if speed(one) >= (1 - SAME_SPEED) * speed(plain[0])]
    near.sort(key=lambda one: (KERNELS.index(one.config.kernels), needed(one)))
    chosen = set(map(id, near))
    return near + [one for one in ordered if id(one) not in chosen]


def _moving_parts(config: RunConfig) -> tuple[int, int]:
    """How much machinery a configuration needs: plain before DDP before sharding, no offload before offload."""
    return (SIMPLEST_FIRST.index(config.sharding), OFFLOADS.index(config.offload))


def faster_method(chosen: Candidate, others: Iterable[Candidate]) -> Candidate | None:
    """The fastest of ``others`` with another method, if it is clearly faster than the chosen one."""
    of_others = (one for one in others if one.config.method != chosen.config.method)
    fastest = max(of_others, key=speed, default=None)
    return fastest if fastest and speed(fastest) > (1 + NEAR_EQUAL) * speed(chosen) else None


def alternatives(
    ranked: Sequence[Candidate], others: Iterable[Sequence[Candidate]], request: PlanRequest
) -> tuple[Candidate, ...]:
    """The best of every other kind (method, sharding, offload, checkpointing, kernels).

    Those that are faster or need less memory than the chosen one come before the dominated, the first of a method and
    sharding before its variants, and the methods take turns.
    """
    chosen = ranked[0]
    best_of_kind: dict[object, Candidate] = {}
    for candidate in [*ranked, *(one for fitting in others for one in rank(fitting, request))]:
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


def _kind(config: RunConfig) -> tuple[object, ...]:
    return (config.method, config.sharding, config.offload, config.gradient_checkpointing, config.kernels)


def _is_dominated(candidate: Candidate, chosen: Candidate) -> bool:
    same_method = candidate.config.method == chosen.config.method
    return same_method and speed(candidate) <= speed(chosen) and needed(candidate) >= needed(chosen)


def pareto(fitting: Iterable[Candidate]) -> tuple[Point, ...]:
    """Those than which none is both smaller and at least as fast, smallest first."""
    front: list[Candidate] = []
    for one in sorted(fitting, key=lambda one: (needed(one), -speed(one))):
        if not front or speed(one) > speed(front[-1]):
            front.append(one)
    return tuple(point(one) for one in front)


def point(candidate: Candidate) -> Point:
    """A candidate that fits, without its terms."""
    told = estimate_of(candidate)
    return Point(candidate.config, told.needed_bytes, told.step_seconds, told.tokens_per_second)


def grouped(rejected: Iterable[RejectedGroup]) -> tuple[RejectedGroup, ...]:
    """Rejections by rule, method and sharding, nearest miss first; rules that are no matter of bytes come last."""
    groups: dict[tuple[str, str, str], list[RejectedGroup]] = {}
    for one in rejected:
        groups.setdefault((one.rejection.rule, one.config.method, one.config.sharding), []).append(one)
    nearest = [(min(group, key=_lacking), sum(one.count for one in group)) for group in groups.values()]
    return tuple(
        RejectedGroup(one.rejection, one.config, count)
        for one, count in sorted(nearest, key=lambda pair: _lacking(pair[0]))
    )


def _lacking(group: RejectedGroup) -> float:
    lacking = group.rejection.lacking_bytes
    return float("inf") if lacking is None else float(lacking)


def estimate_of(candidate: Candidate) -> Estimate:
    """The estimate that every candidate has which a rule did not reject."""
    assert candidate.estimate is not None
    return candidate.estimate


def speed(candidate: Candidate) -> float:
    """Tokens per second over all ranks."""
    return estimate_of(candidate).tokens_per_second


def needed(candidate: Candidate) -> int:
    """Bytes that the worst rank needs."""
    return estimate_of(candidate).needed_bytes
