"""What a configuration costs: terms of memory on the phases of a run, and the time of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property


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

    @property
    def needed_by_phase(self) -> dict[Phase, int]:
        """What each phase needs: its tensors and the process; at the peak what the allocator needs for them."""
        outside = self.process_bytes - self.peak_reserved_bytes
        return {
            phase: self.needed_bytes if phase == self.peak_phase else min(tensors + outside, self.needed_bytes)
            for phase, tensors in Timeline(self.terms).by_phase.items()
        }


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
