"""The stream of a trace: what is allocated and freed on a device, in order. Plain data, without torch."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What an event does."""

    ALLOC = 0
    FREE = 1
    EMPTY_CACHE = 2
    """``torch.cuda.empty_cache()``: cached segments go back to the driver."""
    RESET_PEAK = 3
    """``torch.cuda.reset_peak_memory_stats()``: peaks start again from what is held now."""
    MARK = 4
    """A phase begins; ``key`` is its number."""
    RECORD = 5
    """``tensor.record_stream``: the block ``key`` is used on ``stream`` too, so its memory is reused only later."""
    READY = 6
    """A gradient of ``size`` bytes is complete; ``key`` is the bytes of its element. Takes no memory itself."""


class Event(NamedTuple):
    """One event. ``key`` names an allocation, once in a stream; ``size`` is in bytes as asked for, not rounded."""

    kind: Kind
    key: int = 0
    size: int = 0
    stream: int = 0
