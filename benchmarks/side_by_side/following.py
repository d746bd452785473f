"""Starts a launch and notes when each step's line arrives: the same clock for both programs.

LLaMA-Factory's own log has whole seconds. A line is written after the loss was read, which waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from benchmarks.side_by_side.launches import Launch
from ftplan.launcher.monitor import LineReader
from ftplan.launcher.process import Child, Outcome

POLL_SECONDS: Final = 0.002
MEMORY_SECONDS: Final = 0.25
LEFT_OUT_STEPS: Final = 3
"""The first steps allocate, choose kernels and fill caches."""
LOG_TAIL: Final = 1500


@dataclass(frozen=True)
class Followed:
    """A run from outside.

    Attributes:
        arrivals: seconds from the start to each step's line.
        losses: of the same steps.
        outcome: how the process ended; None if it was ended here, after its time.
        seconds: from the start to the end.
        card_bytes: the most that was in use on the card, as the driver counts it; None without one.
        log_tail: the end of what it printed.

    """

    arrivals: tuple[float, ...]
    losses: tuple[float, ...]
    outcome: Outcome | None
    seconds: float
    card_bytes: int | None
    log_tail: str

    def ok(self, steps: int) -> bool:
        """Whether it did all its steps and ended well."""
        return len(self.arrivals) == steps and self.outcome is not None and self.outcome.ok

    @property
    def step_seconds(self) -> float | None:
        """The median step without the first ones; None if there are no others."""
        steps = [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]
        steady = steps[LEFT_OUT_STEPS - 1 :]
        return median(steady) if steady else None


def follow(launch: Launch, limit_seconds: float) -> Followed:
    """Run ``launch`` to its end, or end it after ``limit_seconds``."""
    reader = LineReader(launch.progress)
    arrivals: list[float] = []
    losses: list[float] = []
    outcome: Outcome | None = None
    started = time.monotonic()
    with _card() as used, Child(launch.argv, launch.env, launch.log) as child:
        highest, looked = used(), started
        while outcome is None and (now := time.monotonic()) < started + limit_seconds:
            outcome = child.wait(0)  # before the last look, so that no line is missed
            for loss in map(launch.loss_of, reader.read()):
                if loss is not None:
                    arrivals.append(time.monotonic() - started)
                    losses.append(loss)
            if now > looked + MEMORY_SECONDS:
                highest, looked = max(highest, used()), now
            time.sleep(POLL_SECONDS)
    tail = launch.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
    return Followed(tuple(arrivals), tuple(losses), outcome, time.monotonic() - started, highest or None, tail)


@contextmanager
def _card() -> Iterator[Any]:
    """A function that tells the bytes in use on the first card; 0 where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, or no driver
        yield lambda: 0
        return
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    try:
        yield lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
