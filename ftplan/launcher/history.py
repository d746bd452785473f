"""The events of a run as its history: attempts, what each began with and how it ended, and curves over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ftplan.launcher.diagnosis import root_cause
from ftplan.launcher.events import (
    Evaluated,
    Event,
    Failed,
    Finished,
    Noted,
    RankMemory,
    Recovering,
    Saved,
    Started,
    Stepped,
)

CURVES: Final[Mapping[str, str]] = {
    "loss": "loss",
    "learning rate": "learning_rate",
    "gradient norm": "grad_norm",
    "tokens/s": "tokens_per_second",
    "MFU": "mfu",
}
"""Curves by name, with the field of `Stepped`; one that a version does not tell has no curve."""


@dataclass(slots=True)
class Attempt:
    """What one launch of the run told, in order. ``started`` is None where it never came to training."""

    number: int
    events: list[Event] = field(default_factory=list)

    @property
    def started(self) -> Started | None:
        """How the training began."""
        return next((event for event in self.events if isinstance(event, Started)), None)

    @property
    def steps(self) -> list[Stepped]:
        """Its logged steps."""
        return [event for event in self.events if isinstance(event, Stepped)]

    @property
    def ended(self) -> Finished | Failed | None:
        """How it ended: a failure by its root cause; None if it told nothing."""
        finished = next((event for event in self.events if isinstance(event, Finished)), None)
        return finished or root_cause(self.events)


def attempts(events: Iterable[Event]) -> list[Attempt]:
    """``events`` of a run by attempt.

    One begins where a run recovers, where training starts again, or after an end was told; of one failure several ranks
    may tell.
    """
    found: list[Attempt] = []
    has_started = has_ended = False
    for event in events:
        begins = isinstance(event, Recovering) or (has_started and isinstance(event, Started))
        if not found or begins or (has_ended and not isinstance(event, Failed | Noted)):
            found.append(Attempt(len(found) + 1))
            has_started = has_ended = False
        found[-1].events.append(event)
        has_started |= isinstance(event, Started)
        has_ended |= isinstance(event, Finished | Failed)
    return found


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the steps; of a step that was trained twice, the later value."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def curves(events: Sequence[Event]) -> tuple[Curve, ...]:
    """Every curve that ``events`` tell of, the held-out loss last."""
    steps = [event for event in events if isinstance(event, Stepped)]
    found = [_curve(name, ((step.step, getattr(step, of, None)) for step in steps)) for name, of in CURVES.items()]
    found.append(_curve("held-out loss", ((one.step, one.loss) for one in events if isinstance(one, Evaluated))))
    return tuple(curve for curve in found if curve.steps)


def _curve(name: str, points: Iterable[tuple[int, float | None]]) -> Curve:
    latest = {step: value for step, value in points if value is not None}
    steps = tuple(sorted(latest))
    return Curve(name, steps, tuple(latest[step] for step in steps))


def worst_memory(events: Iterable[Event]) -> tuple[RankMemory, ...]:
    """The peaks of each rank, over all that ``events`` tell."""
    worst: dict[int, RankMemory] = {}
    for event in events:
        for memory in event.memory if isinstance(event, Stepped | Finished) else ():
            earlier = worst.get(memory.rank)
            worst[memory.rank] = memory if earlier is None else _larger(earlier, memory)
    return tuple(worst[rank] for rank in sorted(worst))


def _larger(one: RankMemory, other: RankMemory) -> RankMemory:
    return RankMemory(
        one.rank,
        _most(one.allocated_bytes, other.allocated_bytes),
        _most(one.reserved_bytes, other.reserved_bytes),
        _most(one.process_bytes, other.process_bytes),
        _most(one.host_bytes, other.host_bytes),
    )


def _most(*sizes: int | None) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def step_seconds(attempt: Attempt) -> float:
    """Seconds of its optimizer steps together: a logged step stands for those since the one before."""
    started = attempt.started
    first = (started.resumed_from_step or 0) if started is not None else 0
    ends = [first, *(step.step for step in attempt.steps)]
    counts = [end - begin for begin, end in pairwise(ends)]
    return sum(count * step.step_seconds for count, step in zip(counts, attempt.steps, strict=True))


def tokens(attempt: Attempt) -> int:
    """Tokens it put through the model, padding included, on all ranks."""
    started = attempt.started
    last = (started.resumed_from_step or 0) if started is not None else 0
    seen = 0.0
    for step in attempt.steps:
        seen += step.tokens_per_second * step.step_seconds * (step.step - last)
        last = step.step
    return round(seen)


def saving_seconds(events: Iterable[Event]) -> tuple[float, ...]:
    """Seconds of each save."""
    return tuple(event.seconds for event in events if isinstance(event, Saved))


def changes(attempt: Attempt, earlier: Attempt) -> tuple[str, ...]:
    """What ``attempt`` began with that ``earlier`` did not: the configuration, devices, batch, versions."""
    recovering = attempt.events[0] if attempt.events else None
    told = []
    if isinstance(recovering, Recovering):
        told = [f"{name.replace('_', ' ')} {old} -> {new}" for name, (old, new) in recovering.changed.items()]
    now, before = attempt.started, earlier.started
    if now is None or before is None:
        return tuple(told)
    told += [
        f"{name} {getattr(before, of)} -> {getattr(now, of)}"
        for name, of in (("processes", "world_size"), ("global batch", "global_batch"), ("samples", "samples"))
        if getattr(before, of) != getattr(now, of)
    ]
    names = sorted({*now.versions, *before.versions})
    told += [
        f"{name} {before.versions.get(name, 'none')} -> {now.versions.get(name, 'none')}"
        for name in names
        if now.versions.get(name) != before.versions.get(name)
    ]
    return tuple(told)
