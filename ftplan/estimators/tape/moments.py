"""The moments of a step at which memory can peak: sizes by what they are, as functions of the micro-batch.

A recorded step holds one layer of each kind; here the layers left out are put back. Going forward, and in the loss,
what a layer keeps is there for every copy. Going backward, the worst is either the last layer of a kind, when all that
was kept is still there, or the first, when every gradient is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ftplan.estimators.blocks import MEDIUM, rounding
from ftplan.estimators.tape.gathering import BUFFER, GATHERED
from ftplan.estimators.tape.kernels import rule_bytes
from ftplan.estimators.tape.sizes import LEFT, NOTHING, RECOMPUTED, Event, Mark, Rule, Size
from ftplan.estimators.tape.step import (
    BACKWARD,
    END,
    EVALUATED,
    EVALUATION,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    OUTSIDE,
    Recorded,
)
from ftplan.results import Phase

PHASES: Final[Mapping[str, Phase]] = {
    FORWARD: Phase.FORWARD,
    LOSS: Phase.LOSS,
    LOSS_BACKWARD: Phase.LOSS,
    EVALUATION: Phase.EVAL,
}
Parts = tuple[tuple[str, Size], ...]


class Batch:
    """What sizes are functions of: samples and tokens of each.

    Attributes:
        tokens: tokens of the micro-batch.
        scores: entries of one head's scores, samples x length x length.
        square: entries of a mask, length x length.
    """

    def __init__(self, samples: int, length: int) -> None:
        self.samples = samples
        self.length = length
        self.tokens = samples * length
        self.square = length * length
        self.scores = samples * self.square

    def bytes(self, size: Size) -> float:
        """``size`` for this micro-batch."""
        tokens, scores, mask, length, fixed = size
        return tokens * self.tokens + scores * self.scores + mask * self.square + length * self.length + fixed


@dataclass(frozen=True)
class Moment:
    """What is allocated at one moment: its parts, their sum, the rules that add to it, and the blocks it lies in.

    ``fixed_rounding`` is what the blocks whose size no micro-batch changes hold beyond their tensors.
    """

    total: Size
    rules: tuple[Rule, ...]
    parts: Parts
    blocks: tuple[tuple[Size, int], ...]
    fixed_rounding: int = 0

    def rounding_bytes(self, batch: Batch) -> int:
        """Bytes that the blocks hold beyond the tensors: see `blocks.rounding`."""
        found = self.fixed_rounding
        of_tokens, of_scores, of_mask, of_length = batch.tokens, batch.scores, batch.square, batch.length
        for (tokens, scores, mask, length, fixed), count in self.blocks:  # a search does this for every candidate
            size = tokens * of_tokens + scores * of_scores + mask * of_mask + length * of_length + fixed
            if size >= MEDIUM:
                found += count * rounding(size)
        return found

    def bytes(self, batch: Batch) -> float:
        """Bytes for a micro-batch."""
        total = batch.bytes(self.total)
        for rule in self.rules:
            total += rule_bytes(rule, batch.tokens)
        return total


@dataclass(frozen=True)
class Traffic:
    """What a micro-batch writes, and how many results: of the forward, recomputed ones, and of the backward."""

    written: Size
    forward: int
    recomputed: int
    backward: int


@dataclass(frozen=True)
class Moments:
    """The moments of each phase that no other exceeds for every micro-batch, and the traffic of a step's pass."""

    by_phase: Mapping[Phase, tuple[Moment, ...]]
    traffic: Traffic

    def worst(self, phase: Phase, batch: Batch) -> Moment:
        """The highest moment of a phase."""
        highest, most = self.by_phase[phase][0], -1.0
        of_tokens, of_scores, of_mask, of_length = batch.tokens, batch.scores, batch.square, batch.length
        for moment in self.by_phase[phase]:  # a search does this for every candidate
            tokens, scores, mask, length, total = moment.total
            total += tokens * of_tokens + scores * of_scores + mask * of_mask + length * of_length
            for rule in moment.rules:
                total += rule_bytes(rule, of_tokens)
            if total > most:
                highest, most = moment, total
        return highest


Held = list[list[Event]]
Extra = tuple[tuple[str, int, int], ...]
"""(state, part, times): what the layers that are not recorded hold."""


@dataclass(frozen=True)
class _Open:
    """A candidate: where it is, its total, and what the layers that are not recorded add."""

    index: int
    phase: Phase
    total: Size
    rules: tuple[Rule, ...]
    extra: Extra


def moments_of(recorded: Recorded) -> Moments:
    """The moments of a recorded step with all its layers."""
    held = _held(recorded)
    survivors: dict[Phase, list[_Open]] = {}
    for candidate in _Scan(recorded, held).candidates(recorded):
        _insert(survivors.setdefault(candidate.phase, []), candidate)
    wanted: dict[int, list[_Open]] = {}
    for found in survivors.values():
        for each in found:
            wanted.setdefault(each.index, []).append(each)
    by_phase: dict[Phase, list[Moment]] = {phase: [] for phase in survivors}
    live: dict[int, Event] = {}
    for index, event in enumerate(recorded.events):
        if isinstance(event, Event):
            if event.size is None:
                live.pop(event.key)
            else:
                live[event.key] = event
        for each in wanted.get(index, ()):
            by_phase[each.phase].append(_moment(live.values(), each, held))
    return Moments({phase: tuple(found) for phase, found in by_phase.items()}, _traffic(recorded))


def _traffic(recorded: Recorded) -> Traffic:
    """Sums over all layers, up to the end of the backward."""
    counts = (1, *(part.count for part in recorded.parts))
    written, forward, recomputed, engine = NOTHING, 0, 0, 0
    backward = False
    for event in recorded.events:
        if isinstance(event, Mark):
            if event.phase == END:
                break
            backward = backward or event.phase == LOSS_BACKWARD
        elif event.size is not None and event.name not in (BUFFER, GATHERED):
            times = counts[event.place]
            written = written.plus(event.size.times(times))
            if event.name == RECOMPUTED:
                recomputed += times
            elif backward:
                engine += times
            else:
                forward += times
    return Traffic(written, forward, recomputed, engine)


def _held(recorded: Recorded) -> dict[str, Held]:
    """By place: what a layer keeps as the loss begins, as its backward begins, at the end and after an evaluation.

    A layer's output is kept if the next layer keeps its input; what the recorded layer does with its own input tells.
    """
    found: list[Held] = []
    live: dict[int, Event] = {}
    sizes: dict[int, Event] = {}
    results = {part.result for part in recorded.parts}
    for event in recorded.events:
        if isinstance(event, Mark):
            if event.phase in (LOSS, LOSS_BACKWARD, END, EVALUATED):
                found.append(_held_now(recorded, live, sizes, results))
        elif event.size is None:
            live.pop(event.key)
        else:
            live[event.key] = event
            if event.key in results:
                sizes[event.key] = event
    return dict(zip(("kept", "late", "grown", "evaluated"), found, strict=True))


def _held_now(recorded: Recorded, live: Mapping[int, Event], sizes: Mapping[int, Event], results: set[int]) -> Held:
    held: Held = [[] for _ in range(len(recorded.parts) + 1)]
    for key, each in live.items():
        if key not in results:
            held[each.place].append(each)
    for part in recorded.parts:
        if part.source in live:
            each = sizes[part.result]
            held[each.place].append(each)
    return held


@dataclass(frozen=True)
class _Copies:
    """How often each part stands for a layer that is not recorded, at the first or the last of a part's layers."""

    order: tuple[int, ...]
    counts: tuple[int, ...]

    def around(self, place: int, *, first: bool) -> list[tuple[int, int, int]]:
        """(part, layers of it before that layer, layers after it) beyond what is recorded."""
        if not place:
            return [(part, 0, count - 1) for part, count in enumerate(self.counts[1:], start=1)]
        index = self.order.index(place) if first else len(self.order) - 1 - self.order[::-1].index(place)
        found = []
        for part in range(1, len(self.counts)):
            before = self.order[:index].count(part) - (part < place)
            found.append((part, before, self.order[index + 1 :].count(part) - (part > place)))
        return found

    def all(self) -> list[tuple[int, int]]:
        """(part, layers beyond the recorded one)."""
        return [(part, count - 1) for part, count in enumerate(self.counts[1:], start=1)]


def _extras(name: str, place: int, copies: _Copies) -> list[Extra]:
    """What the layers that are not recorded add at a moment of ``place``: one case, or two in the backward."""
    if name == FORWARD:
        return (
            [tuple(("kept", part, before) for part, before, _ in copies.around(place, first=False))] if place else [()]
        )
    if name == BACKWARD:
        cases = []
        for first in (False, True):
            around = copies.around(place, first=first)
            late = tuple(("late", part, before) for part, before, _ in around)
            cases.append(late + tuple(("grown", part, after) for part, _, after in around))
        return cases if cases[0] != cases[1] else cases[:1]
    state = {LOSS: "kept", LOSS_BACKWARD: "late", EVALUATION: "evaluated"}[name]
    return [tuple((state, part, more) for part, more in copies.all())]


class _Scan:
    """Walks the events of a step and collects the moments before something is released.

    ``name`` is the part of the step that runs, empty between them; ``rising`` the last allocation of a run of them.
    """

    def __init__(self, recorded: Recorded, held: Mapping[str, Held]) -> None:
        self._copies = _Copies(recorded.order, (1, *(part.count for part in recorded.parts)))
        self._sums = {state: [_sum(events) for events in places] for state, places in held.items()}
        self._known: dict[tuple[str, int], list[tuple[Size, Extra]]] = {}
        self._live: dict[int, Event] = {}
        self._total = NOTHING
        self._rules: list[Rule] = []
        self._phase, self._name, self._rising, self._place = Phase.FORWARD, FORWARD, -1, OUTSIDE

    def candidates(self, recorded: Recorded) -> Iterator[_Open]:
        """Every moment, with what the layers that are not recorded add then."""
        for index, event in enumerate(recorded.events):
            if self._rising >= 0 and (isinstance(event, Mark) or event.size is None):
                for more, extra in self._extras():
                    yield _Open(self._rising, self._phase, self._total.plus(more), tuple(self._rules), extra)
                self._rising = -1
            if isinstance(event, Mark):
                self._begin(event)
            elif event.size is None:
                self._release(event)
            else:
                self._allocate(index, event, event.size)

    def _extras(self) -> list[tuple[Size, Extra]]:
        key = self._name, self._place
        if key not in self._known:
            self._known[key] = [(_weighted(extra, self._sums), extra) for extra in _extras(*key, self._copies)]
        return self._known[key]

    def _begin(self, mark: Mark) -> None:
        if mark.phase == LEFT:
            self._phase, self._name = Phase.BACKWARD, BACKWARD
        elif mark.phase in PHASES:
            self._phase, self._name = PHASES[mark.phase], mark.phase
        elif mark.phase in (END, EVALUATED):
            self._name = ""

    def _release(self, event: Event) -> None:
        gone = self._live.pop(event.key)
        assert gone.size is not None
        self._total = self._total.plus(gone.size.times(-1))
        if gone.rule is not None:
            self._rules.remove(gone.rule)

    def _allocate(self, index: int, event: Event, size: Size) -> None:
        self._live[event.key] = event
        self._total = self._total.plus(size)
        if event.rule is not None:
            self._rules.append(event.rule)
        self._rising = index if self._name else -1
        if event.name not in (BUFFER, GATHERED):  # these come as a layer begins, and belong to none
            self._place = event.place


def _sum(events: Iterable[Event]) -> Size:
    total = NOTHING
    for event in events:
        assert event.size is not None
        total = total.plus(event.size)
    return total


def _weighted(extra: Extra, sums: Mapping[str, Sequence[Size]]) -> Size:
    total = NOTHING
    for state, part, times in extra:
        if times:
            total = total.plus(sums[state][part].times(times))
    return total


def _insert(found: list[_Open], new: _Open) -> None:
    """Keep ``new`` unless another is at least as large in everything, and drop what ``new`` is as large as."""
    for each in found:
        if _covers(each, new):
            return
    found[:] = [each for each in found if not _covers(new, each)]
    found.append(new)


def _covers(one: _Open, other: _Open) -> bool:
    return (
        one.total.tokens >= other.total.tokens
        and one.total.scores >= other.total.scores
        and one.total.mask >= other.total.mask
        and one.total.length >= other.total.length
        and one.total.fixed >= other.total.fixed
        and all(rule in one.rules for rule in other.rules)
    )


def _moment(live: Iterable[Event], each: _Open, held: Mapping[str, Held]) -> Moment:
    """The moment of a candidate: sizes by name, and how many blocks there are of each size."""
    found: dict[str, Size] = {}
    blocks: dict[Size, int] = {}
    times = [(event, 1) for event in live]
    times += [(event, count) for state, part, count in each.extra for event in held[state][part]]
    for event, count in times:
        if count and event.size is not None:
            found[event.name] = found.get(event.name, NOTHING).plus(event.size.times(count))
            blocks[event.size] = blocks.get(event.size, 0) + count
    grow = tuple((size, count) for size, count in blocks.items() if size != Size(fixed=size.fixed))
    fixed = sum(count * rounding(size.fixed) for size, count in blocks.items() if size == Size(fixed=size.fixed))
    return Moment(each.total, each.rules, tuple(found.items()), grow, fixed)
