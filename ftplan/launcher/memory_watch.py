"""Warns when the memory of a run leaves its prediction: at once where it is more, at the end where it is less.

Light: the worker asks with what its ranks report. A peak only grows, so that one above the prediction can be told at
any step; one below it may still come, in the first full batch, the evaluation or the save, and is told when the run
ends. On a GPU two figures count: what is allocated, and what the device has in use, which other processes and libraries
raise too.

On a CPU a process's resident memory is mostly libraries, by version and platform, and the prediction is for those it
was measured with: only much more than that means anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from ftplan.launcher.events import RankMemory, Warned
from ftplan.launcher.job import TrainJob

TOLERANCE: Final = 0.03
"""How far memory may leave the prediction, as a part of it."""

CPU_TOLERANCE: Final = 0.25
"""The same for the resident memory of a process on a CPU. The demo's is 6 % below its prediction; a tracker's client
adds a tenth."""

JUDGED_REPORTS: Final = 3
"""Logged steps of an attempt before a low peak means anything: states and workspaces come with the first."""

Figure = Literal["allocated", "process"]


def _judged(job: TrainJob) -> tuple[Figure, ...]:
    """What is compared. A profiler keeps its trace in the process; on a CPU nothing tells it from the training."""
    if job.device == "cuda":
        return "allocated", "process"
    return () if job.profile else ("process",)


class MemoryWatch:
    """What every rank of ``job`` uses beside its prediction.

    It warns once for a rank, figure and direction, and again when the figure has grown by the tolerance since.
    """

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._planned_tokens = job.config.tokens_per_micro_batch
        self._tolerance = TOLERANCE if job.device == "cuda" else CPU_TOLERANCE
        self._figures = _judged(job)
        self._warned: dict[tuple[int, Figure], int] = {}
        self._largest: dict[int, int] = {}
        self._reports = 0
        self._evaluated = False

    def stepped(self, step: int, memory: Iterable[RankMemory], largest: Sequence[int]) -> Iterator[Warned]:
        """Judge the peaks after ``step``; ``largest`` is each rank's micro-batch with most tokens so far."""
        self._reports += 1
        self._largest = dict(enumerate(largest))
        return self._above(step, memory)

    def evaluated(self) -> None:
        """Held-out rows were evaluated: from now on the peaks include it."""
        self._evaluated = True

    def ended(self, step: int, memory: Sequence[RankMemory]) -> Iterator[Warned]:
        """Judge the peaks of the whole attempt."""
        yield from self._above(step, memory)
        complete = self._evaluated or self._job.data.eval_fraction == 0
        if self._job.device == "cuda" and complete and self._reports >= JUDGED_REPORTS:
            yield from self._below(step, memory)

    def _above(self, step: int, memory: Iterable[RankMemory]) -> Iterator[Warned]:
        for rank in memory:
            for figure in self._figures:
                measured, predicted = self._both(rank, figure)
                known = self._warned.get((rank.rank, figure), predicted)
                if measured is not None and known is not None and measured > known * (1 + self._tolerance):
                    assert predicted is not None
                    self._warned[rank.rank, figure] = measured
                    on_gpu = self._job.device == "cuda"
                    message = "the run may end out of memory" if on_gpu else "the host's memory has to suffice for it"
                    if short := self._shortness(rank.rank):
                        message += f"; {short}, and longer ones take more"
                    yield Warned("memory", rank.rank, figure, step, measured, predicted, message)

    def _below(self, step: int, memory: Iterable[RankMemory]) -> Iterator[Warned]:
        for rank in memory:
            measured, predicted = self._both(rank, "allocated")
            if measured is None or predicted is None or measured >= predicted * (1 - TOLERANCE):
                continue
            short = self._shortness(rank.rank)
            message = f"as to be expected: {short}" if short else "the estimate was too high"
            yield Warned("memory", rank.rank, "allocated", step, measured, predicted, message)

    def _both(self, measured: RankMemory, figure: Figure) -> tuple[int | None, int | None]:
        predicted = self._job.prediction_of(measured.rank)
        name = f"{figure}_bytes"
        return getattr(measured, name), getattr(predicted, name, None)

    def _shortness(self, rank: int) -> str:
        """That no micro-batch of ``rank`` was as large as planned, if so: its samples are shorter than planned."""
        largest = self._largest.get(rank, self._planned_tokens)
        if largest >= self._planned_tokens * (1 - TOLERANCE):
            return ""
        return f"its largest micro-batch had {largest:,} of the planned {self._planned_tokens:,} tokens"
