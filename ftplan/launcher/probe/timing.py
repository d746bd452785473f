"""Seconds of a call, on a GPU by its own events."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

import torch

LEAST_CALLS: Final = 5
WARM_UP_CALLS: Final = 2


def median_seconds(call: Callable[[], object], device: torch.device, *, least_seconds: float) -> float:
    """Median time of ``call``, repeated back to back for ``least_seconds`` and at least `LEAST_CALLS` times."""
    for _ in range(WARM_UP_CALLS):
        call()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < LEAST_CALLS or time.perf_counter() - started < least_seconds:
        samples.append(timed_seconds(call, device))
    return median(samples)


def timed_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time of one ``call``, to the end of what it started on the device."""
    if device.type == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000
