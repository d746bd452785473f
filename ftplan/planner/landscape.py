"""Every configuration that a search estimates, by speed and memory: what a plan is one of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ftplan.errors import InputError
from ftplan.planner.findings import Findings
from ftplan.planner.ranking import point
from ftplan.planner.search import search, without_collections
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Candidate, Estimate, Placed, RejectedGroup
from ftplan.spec import PlanRequest, RunConfig

Known = tuple[tuple[RunConfig, Estimate], ...]
"""Configurations with a better estimate than the search's, which goes by a fit of what the allocator wastes."""


def landscape(request: PlanRequest, model: ModelProfile, cluster: Cluster, known: Known = ()) -> tuple[Placed, ...]:
    """What the search for ``request`` estimates, and ``known``: see `places`.

    Where the request itself cannot be searched (its batch does not split over the ranks), the known are all.
    """
    try:
        with without_collections():
            seen = search(request, model, cluster)
    except InputError:
        seen = Findings()
    return places(seen, known)


def places(seen: Findings, known: Known = ()) -> tuple[Placed, ...]:
    """What a search estimated, smallest first; ``known`` takes the place of its estimates, or is added."""
    near = (one for looked in seen.tiers for one in looked.near)
    found = {one.config: _placed(one) for one in (*seen.misses, *near, *seen.fitting)}
    found |= {config: _placed(Candidate(config, estimate)) for config, estimate in known}
    return tuple(sorted(found.values(), key=lambda placed: (placed.needed_bytes, -placed.tokens_per_second)))


def without_refused(
    found: Sequence[Placed], refused: Iterable[RejectedGroup], chosen: RunConfig | None
) -> tuple[Placed, ...]:
    """``found``, where what a plan's replays ``refused`` does not fit either, nor what shards alike and needs as much.

    The fit that a search goes by lets some pass that the allocator then cannot hold.
    """
    places = {one.config: one for one in found}
    for group in refused:
        own = places.get(group.config)
        if own is None or not own.fits or group.rejection.rule != "memory":
            continue
        for config, one in places.items():
            alike = config != chosen and one.fits and _shards(config) == _shards(own.config)
            if alike and one.needed_bytes >= own.needed_bytes:
                places[config] = replace(one, fits=False, reason=group.rejection.reason)
    return tuple(places.values())


def _shards(config: RunConfig) -> tuple[str, str, str]:
    return (config.method, config.sharding, config.offload)


def _placed(candidate: Candidate) -> Placed:
    told = point(candidate)
    assert candidate.estimate is not None
    rejection = candidate.rejection
    fits = candidate.estimate.fits and rejection is None
    reason = rejection.reason if rejection is not None else "" if fits else "does not fit"
    return Placed(told.config, told.needed_bytes, told.step_seconds, told.tokens_per_second, fits, reason)
