"""DDP's gradient buckets, which depend on the whole model and so are put into the stream after its layers are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from ftplan.estimators.trace.record import NO_LAYER, Allocation, Recording
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.results import Phase

BUCKETS: Final = "buckets"
FIRST_BUCKET_BYTES: Final = 1 << 20
BUCKET_BYTES: Final = 25 << 20
"""torch.nn.parallel.DistributedDataParallel: the first bucket's limit, and ``bucket_cap_mb``."""
_FORWARD: Final = list(Phase).index(Phase.FORWARD)
_OPTIMIZER: Final = list(Phase).index(Phase.OPTIMIZER)


def with_buckets(recording: Recording) -> Recording:
    """``recording`` with DDP's buckets in place of those of the traced layers.

    At first all gradients of one dtype are one bucket (DDP sets no limit before it has seen their order); as the second
    step begins they are laid out again in the order in which gradients became complete (torch/csrc/distributed/c10d/
    reducer.cpp, rebuild_buckets).
    """
    ready = list(_first_step(recording.events))
    placed = _without(recording)
    result = replace(placed, events=[], labels=[], loose=[], allocations=list(placed.allocations))
    whole: list[int] = []
    steps = 0
    between = True
    for event, label in zip(placed.events, placed.labels, strict=True):
        if event.kind is Kind.MARK and event.key == _FORWARD and between:
            between = False
            steps += 1
            if steps == 1:
                whole = _allocate(result, _by_dtype(ready))
            elif steps == 2:
                for key in whole:
                    _append(result, Event(Kind.FREE, key))
                _allocate(result, _assigned(ready))
        between = between or (event.kind is Kind.MARK and event.key == _OPTIMIZER)
        _append(result, event, label)
    return result


def _first_step(events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        if event.kind is Kind.READY:
            yield event
        elif event.kind is Kind.MARK and event.key == _OPTIMIZER:
            return


def _by_dtype(ready: list[Event]) -> list[int]:
    totals: dict[int, int] = {}
    for event in ready:
        totals[event.key] = totals.get(event.key, 0) + event.size
    return list(totals.values())


def _assigned(ready: list[Event]) -> list[int]:
    """Sizes of the buckets: gradients in order until the limit is reached, each dtype by itself."""
    sizes: list[int] = []
    open_buckets: dict[int, int] = {}
    limits: dict[int, int] = {}
    for event in ready:
        size = open_buckets.get(event.key, 0) + event.size
        if size >= limits.get(event.key, FIRST_BUCKET_BYTES):
            sizes.append(size)
            limits[event.key] = BUCKET_BYTES
            size = 0
        open_buckets[event.key] = size
    return [*sizes, *(size for size in open_buckets.values() if size)]


def _allocate(result: Recording, sizes: list[int]) -> list[int]:
    keys = []
    for size in sizes:
        key = len(result.allocations)
        keys.append(key)
        result.allocations.append(Allocation(size, "c10d::Reducer", "", Phase.LOAD, NO_LAYER, 0, BUCKETS))
        _append(result, Event(Kind.ALLOC, key, size))
    return keys


def _append(result: Recording, event: Event, label: int = NO_LAYER) -> None:
    result.events.append(event)
    result.labels.append(label)
    result.loose.append(True)


def _without(recording: Recording) -> Recording:
    """``recording`` less the buckets that were made for the traced layers only."""
    dropped = {key for key, each in enumerate(recording.allocations) if each.category == BUCKETS}
    kept = [
        index
        for index, event in enumerate(recording.events)
        if event.kind not in (Kind.ALLOC, Kind.FREE) or event.key not in dropped
    ]
    return replace(
        recording,
        events=[recording.events[index] for index in kept],
        labels=[recording.labels[index] for index in kept],
        loose=[],
    )
