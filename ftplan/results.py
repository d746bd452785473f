"""Frozen outputs: terms, estimates, rejections, plans and run records.

Plain dataclasses, because a search builds tens of thousands of them, and without slots, which would double the time to
import them; pydantic serialises and validates them at the edges (`to_json`, `from_json`). Bytes are integers, times are
seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import TypeAdapter

from ftplan.spec import PlanRequest, RunConfig

_T = TypeVar("_T")


class Phase(StrEnum):
    """The phases of a run, in order; a term of memory is alive in some of them."""

    LOAD = "load"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EVAL = "eval"
    SAVE = "save"


_PHASES = tuple(Phase)


class Provenance(StrEnum):
    """Where a figure comes from, best first."""

    MEASURED = "measured"
    TRACED = "traced"
    ANALYTIC = "analytic"
    ASSUMED = "assumed"

    @staticmethod
    def worst(figures: Iterable[Provenance]) -> Provenance:
        """The provenance of a total of ``figures``."""
        return max(figures, key=_BEST_FIRST.__getitem__, default=Provenance.MEASURED)


_BEST_FIRST = {provenance: place for place, provenance in enumerate(Provenance)}


@dataclass(frozen=True, init=False)
class Term:
    """One contribution to memory: ``bytes`` held during each phase in ``alive``.

    ``reason`` says which tensors these are; ``source`` says where the formula or the figure comes from.
    """

    name: str
    bytes: int
    alive: tuple[Phase, ...]
    reason: str
    source: str
    provenance: Provenance

    def __init__(
        self,
        name: str,
        bytes: int,  # noqa: A002 - the field's name
        alive: tuple[Phase, ...],
        reason: str,
        source: str,
        provenance: Provenance = Provenance.ANALYTIC,
    ) -> None:
        # An estimate makes twenty, in half the time that a frozen dataclass's own takes.
        own = self.__dict__
        own["name"] = name
        own["bytes"] = bytes
        own["alive"] = alive
        own["reason"] = reason
        own["source"] = source
        own["provenance"] = provenance


@dataclass(frozen=True)
class Timeline:
    """Memory of one device or host over the phases of a run."""

    terms: tuple[Term, ...]

    def bytes_at(self, phase: Phase) -> int:
        """Sum of the terms alive in ``phase``."""
        return sum(term.bytes for term in self.terms if phase in term.alive)

    @cached_property
    def by_phase(self) -> dict[Phase, int]:
        """The peak of each phase."""
        totals = dict.fromkeys(_PHASES, 0)
        for term in self.terms:
            size = term.bytes
            for phase in term.alive:
                totals[phase] += size
        return totals

    @property
    def peak(self) -> tuple[Phase, int]:
        """The phase with the highest peak, the first of equals, and its bytes."""
        by_phase = self.by_phase
        phase = max(by_phase, key=by_phase.__getitem__)
        return phase, by_phase[phase]

    @property
    def peak_phase(self) -> Phase:
        """The phase with the highest peak."""
        return self.peak[0]

    @property
    def peak_bytes(self) -> int:
        """The highest peak of any phase."""
        return self.peak[1]

    @property
    def held_through_bytes(self) -> int:
        """Sum of the terms alive in every phase, such as weights."""
        return sum(term.bytes for term in self.terms if len(term.alive) == len(_PHASES))

    @property
    def provenance(self) -> Provenance:
        """The worst provenance among the terms."""
        return Provenance.worst(term.provenance for term in self.terms)


@dataclass(frozen=True)
class RankEstimate:
    """Memory of one rank on its device.

    ``needed_bytes`` is the smallest card under which the rank surely survives: what the allocator must be able to
    reserve, plus context and libraries. It is what ``fits`` compares with ``capacity_bytes``. ``process_bytes`` is what
    the driver shows on a card with room to spare.
    """

    rank: int
    device: str
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    process_bytes: int
    needed_bytes: int
    capacity_bytes: int
    fits: bool
    peak_phase: Phase
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class HostEstimate:
    """RAM of one node, all its ranks together; ``capacity_assumed`` if nobody stated or measured what there is.

    ``peak_bytes`` is what the processes show as resident. ``shared_bytes`` of what is resident while loading are pages
    of checkpoint files that several ranks map: they are there once, and `fits` counts them so.
    """

    peak_bytes: int
    capacity_bytes: int
    capacity_assumed: bool
    fits: bool
    peak_phase: Phase
    terms: tuple[Term, ...]
    shared_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """The highest peak of any phase, with shared pages counted once."""
        return max(self._needed.values())

    @property
    def needed_phase(self) -> Phase:
        """The phase of `needed_bytes`."""
        return max(self._needed, key=self._needed.__getitem__)

    @property
    def _needed(self) -> dict[Phase, int]:
        by_phase = Timeline(self.terms).by_phase
        return {phase: size - (self.shared_bytes if phase is Phase.LOAD else 0) for phase, size in by_phase.items()}


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part; ``total_seconds`` accounts for what overlaps."""

    compute_seconds: float
    overhead_seconds: float
    communication_seconds: float
    offload_seconds: float
    optimizer_seconds: float
    total_seconds: float
    bound_by: str
    provenance: Provenance = Provenance.ANALYTIC


@dataclass(frozen=True)
class TrainingTime:
    """Time and cost of a whole training: ``steps`` optimizer steps of ``step_seconds`` each.

    ``step_seconds`` is that of samples as long as the data's, which may be shorter than an estimate's ``seq_len``.
    ``device_seconds`` counts every device that takes part. ``dollars`` is None where a device has no price. ``notes``
    say what the figures assume and leave out.
    """

    steps: int
    step_seconds: float
    seconds: float
    device_seconds: float
    dollars: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibrated:
    """A device whose figures ``ftplan calibrate`` measured: when (ISO 8601, UTC), and which ones an estimate uses."""

    device: str
    measured_at: str
    figures: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """What recorded runs on the same devices taught, over what was predicted before they did.

    ``step_ratios`` maps ranks to the median of measured over predicted seconds of a step, and how many runs it is of;
    ``excess_bytes`` maps ranks, method, sharding and offload to the most that a process took over its prediction.
    """

    step_ratios: Mapping[int, tuple[float, int]] = field(default_factory=dict)
    excess_bytes: Mapping[tuple[int, str, str, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Basis:
    """What an estimate rests on beside the packaged figures.

    Attributes:
        devices: names of the devices that take part.
        calibrations: one for each of them that was calibrated.
        step_ratio: what times were multiplied by: the median of measured over predicted seconds of ``step_runs`` runs.
        excess_bytes: what was added to a process: the most that a run of this kind took over its prediction.

    """

    devices: tuple[str, ...] = ()
    calibrations: tuple[Calibrated, ...] = ()
    step_ratio: float = 1.0
    step_runs: int = 0
    excess_bytes: int = 0

    @property
    def is_calibrated(self) -> bool:
        """Every device was calibrated."""
        return bool(self.devices) and len(self.calibrations) == len(self.devices)


@dataclass(frozen=True)
class Estimate:
    """What a configuration costs: the worst rank's figures, each rank's, the host's and the time of a step."""

    estimator: str
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    process_bytes: int
    needed_bytes: int
    host_bytes: int
    capacity_bytes: int
    fits: bool
    peak_phase: Phase
    step_seconds: float
    tokens_per_second: float
    total_params: int
    trainable_params: int
    provenance: Provenance
    terms: tuple[Term, ...]
    ranks: tuple[RankEstimate, ...]
    host: HostEstimate
    step: StepTime
    notes: tuple[str, ...] = ()
    basis: Basis = Basis()
    training: TrainingTime | None = None


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


@dataclass(frozen=True)
class Measured:
    """What a run really cost. A figure that could not be measured is None, never 0.

    ``peak_process_bytes`` is a device's whole use on a GPU and the largest rank's resident memory on a CPU. ``mfu`` is
    model FLOPs utilisation, 0 to 1, as `ftplan.estimators.model_flops` counts it.
    """

    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    peak_process_bytes: int | None
    host_bytes: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    mfu: float | None = None


@dataclass(frozen=True)
class RunWarning:
    """A rank's memory left its prediction at ``step``: one of its figures (`Measured` says what they are)."""

    kind: Literal["memory"]
    rank: int
    figure: Literal["allocated", "process"]
    step: int
    measured_bytes: int
    predicted_bytes: int
    message: str


@dataclass(frozen=True)
class CountedFlops:
    """FLOPs of one optimizer step of all ranks as torch counted them, by operation, beside those of the model.

    Counted are matrix products and attention (whole score matrices), and what checkpointing recomputes too; kernels
    that torch has no formula for are not. ``model`` is None where the model has no profile.
    """

    step: int
    tokens: int
    counted: int
    by_operation: Mapping[str, int]
    model: float | None


@dataclass(frozen=True)
class Recovery:
    """A failure that a run survived by itself.

    ``kind`` and ``message`` say what it died of; it went on from ``from_step`` (None: from its start), with the fields
    ``changed`` in its configuration, each from an old to a new value.
    """

    kind: str
    message: str
    from_step: int | None
    changed: Mapping[str, tuple[str | bool | int | float | None, str | bool | int | float | None]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class RunRecord:
    """The end of a run: what was predicted beside what was measured.

    ``warnings`` are those of all attempts. ``profiles`` are paths of traces and memory snapshots that were asked for.
    """

    run_id: str
    status: str
    config: RunConfig
    inventory: str
    global_batch: int
    steps: int
    first_loss: float | None
    last_loss: float | None
    predicted: Measured
    measured: Measured
    wall_seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    resumed_from_step: int | None = None
    basis: Basis = Basis()
    recoveries: tuple[Recovery, ...] = ()
    warnings: tuple[RunWarning, ...] = ()
    flops: CountedFlops | None = None
    profiles: tuple[str, ...] = ()


_CONTROLS: Final = re.compile("[\x7f-\x9f]")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_jsonable(result: object) -> Any:
    """``result`` as JSON values: dicts, lists, strings, numbers."""
    return _adapter(cast("Any", type(result))).dump_python(result, mode="json")


def to_json(result: object) -> str:
    """``result`` as an indented JSON document with a final newline; control characters are spelled out."""
    text = json.dumps(to_jsonable(result), indent=2, ensure_ascii=False) + "\n"
    return _CONTROLS.sub(
        lambda found: f"\\u{ord(found[0]):04x}", text
    )  # json leaves DEL and those after it as they are


def from_json(kind: type[_T], document: str | bytes) -> _T:
    """The ``kind`` that `to_json` wrote; raises pydantic's ValidationError for anything else."""
    value: _T = _adapter(cast("Any", kind)).validate_json(document)
    return value
