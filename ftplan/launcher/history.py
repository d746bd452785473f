"""The events of a run as its history: attempts, what each began with and how it ended, and curves over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ftplan.launcher.events import Evaluated, Event, Failed, Finished, Noted, RankMemory, Saved, Started, Stepped

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
        """How it ended, the failure that tells most if there are several; None if it told nothing."""
        finished = next((event for event in self.events if isinstance(event, Finished)), None)
        failures = sorted((event for event in self.events if isinstance(event, Failed)), key=_is_vague)
        return finished or (failures[0] if failures else None)


def _is_vague(failure: Failed) -> bool:
    return failure.kind == "error"


def attempts(events: Iterable[Event]) -> list[Attempt]:
    """``events`` of a run by attempt: one begins where training starts again, or after an end was told.

    Several ranks may tell of one failure.
    """
    found: list[Attempt] = []
    for event in events:
        if not found or _begins_another(event, found[-1]):
            found.append(Attempt(len(found) + 1))
        found[-1].events.append(event)
    return found


def _begins_another(event: Event, attempt: Attempt) -> bool:
    if isinstance(event, Started):
        return attempt.started is not None or attempt.ended is not None
    return attempt.ended is not None and not isinstance(event, Failed | Noted)


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
    """What ``attempt`` began with that ``earlier`` did not: devices, batch, versions."""
    now, before = attempt.started, earlier.started
    if now is None or before is None:
        return ()
    told = [
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
