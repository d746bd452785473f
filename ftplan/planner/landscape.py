"""Every configuration that a search estimates, by speed and memory: what a plan is one of."""

from __future__ import annotations

from ftplan.errors import InputError
from ftplan.planner.ranking import point
from ftplan.planner.search import search, without_collections
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Candidate, Estimate, Placed
from ftplan.spec import PlanRequest, RunConfig


def landscape(
    request: PlanRequest,
    model: ModelProfile,
    cluster: Cluster,
    known: tuple[tuple[RunConfig, Estimate], ...] = (),
) -> tuple[Placed, ...]:
    """What the search for ``request`` estimates, smallest first; each configuration once.

    The search goes by a fit of what the allocator wastes. ``known`` are configurations with a better estimate, which
    takes the place of the search's, or is added. Where the request itself cannot be searched (its batch does not split
    over the ranks), these are all.
    """
    found: dict[RunConfig, Placed] = {}
    try:
        with without_collections():
            seen = search(request, model, cluster)
    except InputError:
        candidates: list[Candidate] = []
    else:
        near = (one for looked in seen.tiers for one in looked.near)
        candidates = [*seen.misses, *near, *seen.fitting]
    for one in candidates:
        found[one.config] = _placed(one)
    for config, estimate in known:
        found[config] = _placed(Candidate(config, estimate))
    return tuple(sorted(found.values(), key=lambda placed: (placed.needed_bytes, -placed.tokens_per_second)))


def _placed(candidate: Candidate) -> Placed:
    told = point(candidate)
    assert candidate.estimate is not None
    rejection = candidate.rejection
    fits = candidate.estimate.fits and rejection is None
    reason = rejection.reason if rejection is not None else "" if fits else "does not fit"
    return Placed(told.config, told.needed_bytes, told.step_seconds, told.tokens_per_second, fits, reason)
