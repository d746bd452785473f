"""A stream of allocations replayed through the simulated allocator: its peaks, and the least memory it survives in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ftplan.estimators.trace.addresses import AddressSpace, Ascending
from ftplan.estimators.trace.allocator import Block, CachingAllocator, SimulatedOutOfMemory
from ftplan.estimators.trace.stream import Event, Kind


@dataclass(frozen=True)
class Replay:
    """What a stream did to the allocator; peaks and phases since the last reset of the peaks."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    end_allocated_bytes: int
    retries: int
    peak_index: int
    """The event that first reached the allocated peak; the reset, or 0, if none exceeded what was held then."""
    phases: dict[int, tuple[int, int]]
    """Highest (allocated, reserved) while each mark held, over its recurrences."""


COARSE: Final = 0.03
"""Of the allocated peak: how exactly the smallest limit is sought where it is known to be small enough."""


def replay(
    events: Sequence[Event],
    *,
    expandable_segments: bool = False,
    limit_bytes: int | None = None,
    event_delay: int = 0,
    addresses: type[AddressSpace] = AddressSpace,
) -> Replay:
    """Replay a stream; ``SimulatedOutOfMemory`` if it does not survive the limit."""
    allocator = CachingAllocator(expandable_segments, limit_bytes, event_delay=event_delay, addresses=addresses())
    return _play(events, allocator)


def smallest_limit(
    events: Sequence[Event],
    *,
    expandable_segments: bool = False,
    resolution: float = 0.001,
    event_delay: int = 0,
    addresses: type[AddressSpace] = AddressSpace,
    enough_bytes: int = 0,
) -> int:
    """The smallest limit, not below its allocated peak, that a stream survives; to ``resolution`` of that peak.

    Up to ``enough_bytes`` nobody asks for more than `COARSE` of it, which takes half the time.

    A limit only matters where it is compared. So a replay goes the same under every limit from the most that it was
    granted to just below the least that it was refused, and moves the bracket there instead of to its own limit. That
    the result survives is certain for this reason; that every higher limit does too is usual, not certain.
    """
    events = [event for event in events if event.kind not in (Kind.MARK, Kind.RESET_PEAK)]
    unlimited = CachingAllocator(expandable_segments, event_delay=event_delay, addresses=addresses())
    lowest = _play(events, unlimited).peak_allocated_bytes
    low, high = lowest - 1, max(lowest, unlimited.most_granted_bytes)
    limit = enough_bytes if low < enough_bytes < high else (low + high) // 2
    while high - low > max(1, int((COARSE if high <= enough_bytes else resolution) * lowest)):
        allocator = CachingAllocator(expandable_segments, limit, event_delay=event_delay, addresses=addresses())
        try:
            _play(events, allocator)
        except SimulatedOutOfMemory:
            low = allocator.least_refused_bytes - 1
        else:
            high = max(lowest, allocator.most_granted_bytes)
        limit = (low + high) // 2
    return high


def needed(
    events: Sequence[Event],
    *,
    expandable_segments: bool = False,
    resolution: float = 0.001,
    margin: float = 0.0,
    room_bytes: int = 0,
) -> int:
    """Bytes that the allocator must be able to reserve for a stream to survive.

    What is reserved unhindered, where ``room_bytes`` hold it; else the smallest limit and ``margin`` on it. Addresses
    decide between free blocks of one size, and what a process did before decides on them: of two orders the worse
    counts. Where several streams share the device, with segments of their own, all that is reserved is needed: runs of
    FSDP2 failed in their third step with 3 % more than the smallest limit (benchmarks/data/sharded_limits.jsonl; with
    expandable segments that is exact).
    """
    if not expandable_segments and any(event.kind is Kind.ALLOC and event.stream for event in events):
        return replay(events).peak_reserved_bytes

    def in_order(addresses: type[AddressSpace]) -> int:
        if room_bytes:
            reserved = replay(events, expandable_segments=expandable_segments, addresses=addresses).peak_reserved_bytes
            if reserved <= room_bytes:
                return reserved
        least = smallest_limit(
            events,
            expandable_segments=expandable_segments,
            resolution=resolution,
            addresses=addresses,
            enough_bytes=int(room_bytes / (1 + margin)),
        )
        return round(least * (1 + margin))

    return max(in_order(order) for order in ((AddressSpace,) if expandable_segments else (AddressSpace, Ascending)))


class _Peaks:
    """The highest an allocator held, altogether and in phases, for which its own peaks are reset."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.reserved = 0
        self.phase: int | None = None
        self.phases: dict[int, tuple[int, int]] = {}

    def mark(self, number: int) -> None:
        """End a phase and begin another."""
        self.close()
        self.allocator.reset_peaks()
        self.phase = number

    def reset(self) -> None:
        """Forget everything but which phase it is."""
        self.allocator.reset_peaks()
        self.reserved = 0
        self.phases.clear()

    def close(self) -> None:
        """Take over what the allocator saw since the last mark."""
        allocated, reserved = self.allocator.peak_allocated_bytes, self.allocator.peak_reserved_bytes
        self.reserved = max(self.reserved, reserved)
        if self.phase is not None:
            before = self.phases.get(self.phase, (0, 0))
            self.phases[self.phase] = (max(before[0], allocated), max(before[1], reserved))


def _play(events: Sequence[Event], allocator: CachingAllocator) -> Replay:
    """The loop over all events; the two common kinds come first."""
    peaks = _Peaks(allocator)
    malloc, free = allocator.malloc, allocator.free
    is_alloc, is_free = Kind.ALLOC, Kind.FREE
    live: dict[int, Block | None] = {}
    peak = peak_index = 0
    for index, (kind, key, size, stream) in enumerate(events):
        if kind == is_alloc:
            live[key] = malloc(size, stream) if size else None
            if allocator.allocated_bytes > peak:
                peak, peak_index = allocator.allocated_bytes, index
        elif kind == is_free:
            block = live.pop(key)
            if block is not None:
                free(block)
        elif kind == Kind.RECORD:
            block = live[key]
            if block is not None:
                allocator.record_stream(block, stream)
        elif kind == Kind.EMPTY_CACHE:
            allocator.empty_cache()
        elif kind == Kind.RESET_PEAK:
            peaks.reset()
            peak, peak_index = allocator.allocated_bytes, index
        else:
            peaks.mark(key)
    peaks.close()
    return Replay(
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peaks.reserved,
        end_allocated_bytes=allocator.allocated_bytes,
        retries=allocator.retries,
        peak_index=peak_index,
        phases=peaks.phases,
    )
