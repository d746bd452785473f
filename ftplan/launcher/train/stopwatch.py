"""Times the micro-batches of a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback

from ftplan.launcher.train import card


@dataclass(frozen=True)
class Timing:
    """Seconds of one optimizer step, and of a micro-batch without the optimizer's step, None if there is none."""

    step_seconds: float
    micro_batch_seconds: float | None


@dataclass(frozen=True)
class TimedStep:
    """Seconds of each micro-batch but the last, and of the last with the optimizer's step."""

    micro_batches: tuple[float, ...]
    last: float

    def seconds(self, accumulation: int) -> float:
        """Seconds of a step with ``accumulation`` micro-batches, which may be more than were timed."""
        return (accumulation - 1) * fmean(self.micro_batches) + self.last if self.micro_batches else self.last


def timing_of(steps: list[TimedStep], accumulation: int) -> Timing:
    """The median of ``steps``, as if each had had ``accumulation`` micro-batches."""
    micro_batches = [fmean(step.micro_batches) for step in steps if step.micro_batches]
    return Timing(
        step_seconds=median(step.seconds(accumulation) for step in steps),
        micro_batch_seconds=median(micro_batches) if micro_batches else None,
    )


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Waits for the device at the end of every micro-batch. Reading the batches and logging are left out.

    ``settle`` is called when training begins and after each of the first ``warmup_steps``, which are not timed.
    """

    def __init__(self, warmup_steps: int, settle: Callable[[], None]) -> None:
        self._warmup_steps = warmup_steps
        self._settle = settle
        self._marks: list[float] = []
        self._steps: list[TimedStep] = []

    def timing(self, accumulation: int) -> Timing:
        """The timed steps, as if each had had ``accumulation`` micro-batches."""
        return timing_of(self._steps[self._warmup_steps :], accumulation)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The model is prepared."""
        self._settle()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step's first micro-batch begins."""
        self._marks = []
        self._mark()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """A micro-batch has ended that is not the step's last."""
        self._mark()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped."""
        self._mark()
        *micro_batches, last = (end - begin for begin, end in zip(self._marks, self._marks[1:], strict=False))
        self._steps.append(TimedStep(tuple(micro_batches), last))
        if len(self._steps) <= self._warmup_steps:
            self._settle()

    def _mark(self) -> None:
        card.wait()
        self._marks.append(time.perf_counter())
