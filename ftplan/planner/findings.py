"""What a search has seen: tiers with their candidates, and what is out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ftplan.planner.ranking import needed
from ftplan.planner.space import Tier
from ftplan.results import Candidate, RejectedGroup
from ftplan.spec import PlanRequest


@dataclass
class Looked:
    """A tier with its candidates: those that fit, and those that only a replay can tell, which the fit puts near."""

    tier: Tier
    fitting: list[Candidate]
    near: list[Candidate]


@dataclass
class Findings:
    """What the search has seen, tier by tier in their order.

    ``waiting`` are tiers not looked at, because something fits in a better one. ``looked_at`` counts every
    configuration that was decided, ``estimated`` those that took an estimate; ``misses`` are those that are out.
    """

    waiting: list[Tier] = field(default_factory=list)
    tiers: list[Looked] = field(default_factory=list)
    refused: list[RejectedGroup] = field(default_factory=list)
    misses: list[Candidate] = field(default_factory=list)
    looked_at: int = 0
    estimated: int = 0

    @property
    def best_tier(self) -> Looked | None:
        """The first tier in which something fits."""
        return next((looked for looked in self.tiers if looked.fitting), None)

    @property
    def methods_that_fit(self) -> set[str]:
        """The methods with a candidate that fits."""
        return {looked.tier.method for looked in self.tiers if looked.fitting}

    @property
    def fitting(self) -> Iterator[Candidate]:
        """Every candidate that fits."""
        return (one for looked in self.tiers for one in looked.fitting)

    @property
    def rejected(self) -> tuple[RejectedGroup, ...]:
        """All that is out, with what is near and was not replayed."""
        near = (one for looked in self.tiers for one in looked.near)
        groups = (RejectedGroup(one.rejection, one.config, 1) for one in near if one.rejection is not None)
        return (*self.refused, *groups)

    def best_for(self, request: PlanRequest) -> Looked | None:
        """The tier to choose from: the first in which something may fit, or that with least memory if that is asked."""
        if request.objective != "memory":
            return next((looked for looked in self.tiers if looked.fitting or looked.near), None)
        possible = [looked for looked in self.tiers if looked.fitting or looked.near]
        return min(possible, key=lambda looked: min(map(needed, [*looked.fitting, *looked.near])), default=None)

    def refuse(self, candidate: Candidate, count: int = 1) -> None:
        """Take note of a candidate that is out, and of ``count`` less one that are for the same reason."""
        assert candidate.rejection is not None
        self.refused.append(RejectedGroup(candidate.rejection, candidate.config, count))
        if candidate.estimate is not None:
            self.misses.append(candidate)
