"""What a rank uses: device memory from torch and the driver, host memory from the kernel, and the time of a step."""

from __future__ import annotations

import re
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from ftplan.launcher.events import RankMemory


def rank_memory(rank: int) -> RankMemory:
    """The peaks of this rank since it started.

    The driver knows no peak of a device's use. It is taken as the allocator's peak plus what is in use beside the
    allocator now: context, NCCL, libraries, and other processes on the card.
    """
    host = peak_resident_bytes()
    if not torch.cuda.is_available():
        return RankMemory(rank, None, None, process_bytes=host, host_bytes=host)
    reserved = torch.cuda.max_memory_reserved()
    return RankMemory(
        rank,
        allocated_bytes=torch.cuda.max_memory_allocated(),
        reserved_bytes=reserved,
        process_bytes=reserved + beside_allocator_bytes(),
        host_bytes=host,
    )


def beside_allocator_bytes() -> int:
    """What is in use on the current device now that torch's allocator does not hold."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def peak_resident_bytes() -> int:
    """The highest resident memory of this process.

    Linux's ``ru_maxrss`` survives exec: started by a large process, a small one would show that one's memory.
    """
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class StepClock:
    """Mean time of the optimizer steps between two reports, without the time spent saving and evaluating.

    Reading the loss for a report waits for the device, so that the time between reports is time of the device, too.
    """

    def __init__(self) -> None:
        self._window_start = self._mark = time.monotonic()
        self._excluded = 0.0
        self._steps = 0

    def step_done(self) -> None:
        """An optimizer step was issued."""
        self._steps += 1
        self._mark = time.monotonic()

    def exclude(self) -> float:
        """Leave out the time since the last step or report; returns it in seconds."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self._excluded += seconds
        return seconds

    def report(self) -> tuple[float, int]:
        """Seconds a step, and steps, since the last report; opens the next window."""
        now, steps = time.monotonic(), max(1, self._steps)
        seconds = (now - self._window_start - self._excluded) / steps
        self._window_start, self._mark, self._excluded, self._steps = now, now, 0.0, 0
        return seconds, steps
