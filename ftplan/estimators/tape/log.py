"""A stream of allocations as it is written down, for the simulated allocator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ftplan.estimators.trace.stream import Event, Kind

COMPUTE: Final = 0
GATHERS: Final = 1
REDUCES: Final = 3
"""Streams of the device: that of the kernels, and those on which FSDP2 gathers and reduces."""


class Log:
    """Events in order; a key names one allocation."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._sizes: list[int] = []

    def allocate(self, size: int, stream: int = COMPUTE) -> int:
        """Allocate ``size`` bytes on ``stream``; returns the key."""
        self._sizes.append(size)
        key = len(self._sizes)
        self.events.append(Event(Kind.ALLOC, key, size, stream))
        return key

    def size(self, key: int) -> int:
        """Bytes that were allocated under ``key``."""
        return self._sizes[key - 1]

    def allocate_all(self, sizes: Iterable[int], stream: int = COMPUTE) -> list[int]:
        """Allocate one after the other."""
        return [self.allocate(size, stream) for size in sizes]

    def free(self, keys: Iterable[int]) -> None:
        """Free one after the other."""
        self.events.extend([Event(Kind.FREE, key) for key in keys])

    def passing(self, sizes: Iterable[int], stream: int = COMPUTE) -> None:
        """Allocate all of them, then free them."""
        self.free(self.allocate_all(sizes, stream))

    def record(self, key: int, stream: int) -> None:
        """``tensor.record_stream``: ``stream`` uses it too."""
        self.events.append(Event(Kind.RECORD, key, stream=stream))

    def empty_cache(self) -> None:
        """``torch.cuda.empty_cache()``."""
        self.events.append(Event(Kind.EMPTY_CACHE))
