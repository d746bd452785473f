"""What a search found: candidates, rejections, reasons, and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ftplan.results.estimates import Estimate
from ftplan.spec import PlanRequest, RunConfig


@dataclass(frozen=True)
class Rejection:
    """Why a candidate is out: the rule, and for memory the bytes it needs and what there is."""

    rule: str
    reason: str
    hint: str = ""
    source: str = ""
    needed_bytes: int | None = None
    available_bytes: int | None = None

    @property
    def lacking_bytes(self) -> int | None:
        """Bytes that are missing, where the rule is about memory."""
        if self.needed_bytes is None or self.available_bytes is None:
            return None
        return self.needed_bytes - self.available_bytes


@dataclass(frozen=True)
class Candidate:
    """A configuration the search looked at, with its estimate or the reason it was rejected."""

    config: RunConfig
    estimate: Estimate | None = None
    rejection: Rejection | None = None


@dataclass(frozen=True)
class RejectedGroup:
    """All candidates a rule rejected, told by the nearest miss among them."""

    rejection: Rejection
    config: RunConfig
    count: int


@dataclass(frozen=True)
class Compared:
    """Another value of a choice, by the best configuration that has it.

    Where that fits, ``speed_ratio`` is its tokens per second over the plan's and ``needed_bytes`` what it needs; where
    nothing with this value fits, ``rule`` names what rejected the nearest miss and ``lacking_bytes`` what that lacks.
    """

    value: str
    speed_ratio: float | None = None
    needed_bytes: int | None = None
    rule: str = ""
    lacking_bytes: int | None = None


@dataclass(frozen=True)
class Reason:
    """Why the plan has this value in this field: in words a user understands, and what it was compared with."""

    field: str
    value: str
    because: str
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True)
class Advice:
    """Something beside the plan that a user should weigh, in words and as figures by name."""

    topic: str
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A configuration by what it costs: bytes that the worst rank needs, and its speed."""

    config: RunConfig
    needed_bytes: int
    step_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Placed(Point):
    """A configuration that the search estimated, among the others: whether it fits, and if not, why."""

    fits: bool = True
    reason: str = ""


@dataclass(frozen=True)
class SearchStats:
    """How much the search looked at: ``candidates`` it decided, of which it estimated ``estimated``.

    The others broke a rule, could not hold their weights, or have a larger micro-batch than one that does not fit.
    """

    candidates: int
    seconds: float
    estimated: int = 0


@dataclass(frozen=True)
class Plan:
    """The answer to a `PlanRequest`: one configuration with its reasons, or none with the rejections.

    ``pareto`` are the configurations that fit of which none is both faster and smaller than another, smallest first.
    """

    request: PlanRequest
    global_batch: int
    config: RunConfig | None
    estimate: Estimate | None
    reasons: tuple[Reason, ...]
    alternatives: tuple[Candidate, ...]
    rejections: tuple[RejectedGroup, ...]
    search: SearchStats
    pareto: tuple[Point, ...] = ()
    advice: tuple[Advice, ...] = ()
