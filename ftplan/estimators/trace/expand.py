"""From a trace of a few layers to the whole model's: the middle layers' events again for every layer left out.

Every event carries the unit of layers it belongs to. Two units are in the middle; wherever the stream passes from one
to the other, the events of all units left out stand between them. A copy is made from the two runs of events at
that place, which must be alike: as many allocations of the same sizes, releasing the same things one or no unit away.
Where they are not alike the trace cannot be expanded, and `expand` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from ftplan.estimators.trace.record import NO_LAYER, Allocation, Cost, Label, Recording
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.results import Phase

_Place: TypeAlias = tuple[int, int, int]
"""(run, number within the run, unit): what names an allocation independently of how often the run is repeated."""


class NotExpandableError(Exception):
    """The two middle units do not do the same, so that they cannot stand for others."""


class _Reference(NamedTuple):
    """An event of a run, and where what it concerns was allocated: run, number, and how many units away."""

    event: Event
    place: int
    number: int
    distance: int


@dataclass(slots=True)
class _Run:
    """Consecutive events of one unit; ``pair`` numbers the place where it meets the other middle unit."""

    unit: Label
    start: int
    end: int
    pair: int = -1


def expand(recording: Recording, copies: int, lower: int = 1) -> Recording:
    """``recording`` with ``copies`` more units between its middle ones, ``lower`` and the one after it.

    Raises `NotExpandableError` if these are not alike.
    """
    if copies <= 0:
        return recording
    return _Expansion(recording, copies, lower).run()


class _Expansion:
    def __init__(self, recording: Recording, copies: int, lower: int) -> None:
        self._lower, self._upper = lower, lower + 1
        self._old, self._copies = _in_order(recording), copies
        self._new = Recording(costs=_costs(recording, copies, lower))
        self._runs = _paired(_split(self._old.labels), lower)
        self._units = _units(self._old)
        self._born: dict[int, tuple[int, int]] = {}
        """Allocation of the trace: its run, and its number within the run."""
        self._by_place: dict[_Place, int] = {}
        """Allocation in the expansion, by run (of a pair: the lower's), number and unit."""

    def run(self) -> Recording:
        index = 0
        while index < len(self._runs):
            run = self._runs[index]
            if run.pair < 0:
                self._emit(run, run.unit)
                index += 1
                continue
            other = self._runs[index + 1]
            self._check(run, other)
            self._emit(run, run.unit)
            template = self._template(run, other)
            units = range(self._lower + 1, self._lower + 1 + self._copies)
            for unit in units if run.unit == self._lower else reversed(units):
                self._emit_copy(run, template, unit)
            self._emit(other, other.unit)
            index += 2
        return self._new

    # ------------------------------------------------------------------ one run

    def _whole_unit(self, unit: Label) -> Label:
        """The number of a traced unit in the whole model."""
        return unit if unit <= self._lower else unit + self._copies

    def _emit(self, run: _Run, unit: Label) -> None:
        key_run = run.pair if run.pair >= 0 else run.start
        whole, number = self._whole_unit(unit), 0
        for event in self._old.events[run.start : run.end]:
            if event.kind is Kind.ALLOC:
                self._born[event.key] = (key_run, number)
                self._place((key_run, number, whole), event, self._old.allocations[event.key], whole)
                number += 1
            elif event.kind in (Kind.FREE, Kind.RECORD):
                self._new.events.append(event._replace(key=self._key_of(event.key, unit)))
                self._new.labels.append(whole)
            else:
                self._new.events.append(event)
                self._new.labels.append(whole)

    def _key_of(self, key: int, unit: Label) -> int:
        """The allocation that an event of ``unit`` means: of a middle unit across the gap, the one as far as it was."""
        run, number = self._born[key]
        other = self._unit_of(key)
        if unit != NO_LAYER and other in (self._lower, self._upper) and (unit >= self._upper) != (other >= self._upper):
            return self._by_place[run, number, self._whole_unit(unit) + other - unit]
        return self._by_place[run, number, self._whole_unit(other)]

    def _unit_of(self, key: int) -> Label:
        return self._units[key]

    def _place(self, place: _Place, event: Event, allocation: Allocation, unit: Label) -> None:
        key = len(self._new.allocations)
        self._by_place[place] = key
        self._new.allocations.append(allocation)
        self._new.events.append(event._replace(key=key))
        self._new.labels.append(unit)

    # ------------------------------------------------------------------ pairs

    def _template(self, run: _Run, other: _Run) -> list[_Reference]:
        """What a copy does: it refers to units below as the upper of the two does, to units above as the lower does.

        Below the lower unit is the first one, above the upper the last, and these need not look like middle ones.
        """
        lower, upper = (run, other) if run.unit == self._lower else (other, run)
        pairs = zip(self._references(lower), self._references(upper), strict=True)
        return [above if above.distance > 0 else below for above, below in pairs]

    def _references(self, run: _Run) -> list[_Reference]:
        references = []
        number = 0
        own: dict[int, tuple[int, int]] = {}
        for event in self._old.events[run.start : run.end]:
            if event.kind is Kind.ALLOC:
                own[event.key] = (run.pair, number)
                number += 1
            if event.kind in (Kind.ALLOC, Kind.FREE, Kind.RECORD):
                place = own.get(event.key) or self._born.get(event.key, (-1, event.key))
                references.append(_Reference(event, *place, self._unit_of(event.key) - run.unit))
            else:
                references.append(_Reference(event, run.pair, 0, 0))
        return references

    def _check(self, run: _Run, other: _Run) -> None:
        first = self._old.events[run.start : run.end]
        second = self._old.events[other.start : other.end]
        if len(first) != len(second):
            raise NotExpandableError(f"two middle layers have {len(first)} and {len(second)} events in one place")
        for one, two in zip(first, second, strict=True):
            same = one.kind is two.kind and one.size == two.size and one.stream == two.stream
            if same and one.kind in (Kind.FREE, Kind.RECORD):
                same = self._unit_of(one.key) - run.unit == self._unit_of(two.key) - other.unit
            if not same:
                raise NotExpandableError(f"two middle layers differ: {self._told(one)} and {self._told(two)}")

    def _told(self, event: Event) -> str:
        if event.kind not in (Kind.ALLOC, Kind.FREE, Kind.RECORD):
            return event.kind.name
        what = self._old.allocations[event.key]
        return (
            f"{event.kind.name} of {what.size} bytes, {what.operation} in {what.phase} ({what.module or 'no module'})"
        )

    def _emit_copy(self, run: _Run, template: Sequence[_Reference], unit: Label) -> None:
        for event, place, number, distance in template:
            if event.kind is Kind.ALLOC:
                self._place((run.pair, number, unit), event, self._old.allocations[event.key], unit)
            elif event.kind in (Kind.FREE, Kind.RECORD):
                key = self._by_place.get((place, number, unit + distance))
                if key is None:
                    what = self._old.allocations[event.key]
                    raise NotExpandableError(
                        f"a middle layer releases {what.size} bytes of {what.operation} {what.module}, {distance} away"
                    )
                self._new.events.append(event._replace(key=key))
                self._new.labels.append(unit)
            else:
                self._new.events.append(event)
                self._new.labels.append(unit)


def _in_order(recording: Recording) -> Recording:
    """``recording`` with releases outside the layers in the order of the layers, where nothing is allocated between.

    Autocast's cache, for one, is a hash table and drops its casts in no order; for the memory it is all the same. A
    release amid another layer's events is that layer's: a variable that is overwritten.
    """
    events, labels = list(recording.events), list(recording.labels)
    start = 0
    for index in range(len(events) + 1):
        if index < len(events) and recording.loose[index] and events[index].kind is Kind.FREE:
            continue
        if index > start:
            chosen = sorted(range(start, index), key=lambda each: (labels[each], events[each].key))
            moved, units = [events[each] for each in chosen], [labels[each] for each in chosen]
            before = labels[start - 1] if start else NO_LAYER
            after = labels[index] if index < len(events) else NO_LAYER
            if (
                len(set(units)) == 1
                and NO_LAYER not in (before, after)
                and (before == after or units[0] not in (before, after))
            ):
                units = [before] * len(units)
            events[start:index], labels[start:index] = moved, units
        start = index + 1
    return replace(recording, events=events, labels=labels)


def _units(recording: Recording) -> list[Label]:
    """The unit in which each allocation was made."""
    units = [NO_LAYER] * len(recording.allocations)
    for event, label in zip(recording.events, recording.labels, strict=True):
        if event.kind is Kind.ALLOC:
            units[event.key] = label
    return units


def _split(labels: Sequence[Label]) -> list[_Run]:
    runs: list[_Run] = []
    start = 0
    for index in range(1, len(labels) + 1):
        if index == len(labels) or labels[index] != labels[start]:
            runs.append(_Run(labels[start], start, index))
            start = index
    return runs


def _paired(runs: list[_Run], lower: int) -> list[_Run]:
    """Mark adjacent runs of the two middle units; one that stands alone cannot be repeated."""
    index = 0
    while index < len(runs):
        run = runs[index]
        if run.unit in (lower, lower + 1):
            other = runs[index + 1] if index + 1 < len(runs) else None
            if other is None or other.unit != 2 * lower + 1 - run.unit:
                count = run.end - run.start
                raise NotExpandableError(f"{count} events of a middle layer do not meet the next layer's")
            run.pair = other.pair = run.start
            index += 1
        index += 1
    return runs


def _costs(recording: Recording, copies: int, lower: int) -> dict[tuple[Label, Phase], Cost]:
    """The work of the whole model: the lower middle unit's, once more for every copy."""
    costs = dict(recording.costs)
    for (label, phase), cost in recording.costs.items():
        if label == lower:
            whole = Cost()
            whole.add(cost, 1 + copies)
            costs[label, phase] = whole
    return costs
