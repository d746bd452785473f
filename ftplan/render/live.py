"""A step of a run as text: its figures, and each rank's memory beside its prediction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rich.console import RenderableType
from rich.progress import Progress
from rich.text import Text

from ftplan.launcher.events import RankMemory, Stepped
from ftplan.launcher.job import TrainJob
from ftplan.launcher.memory_watch import CPU_TOLERANCE, TOLERANCE
from ftplan.render.console import duration, number, percent, size, words
from ftplan.results import CountedFlops, RunWarning

SHOWN_RANKS: Final = 8
"""Lines of memory on a terminal; of more ranks those that are farthest above their prediction."""

Part = tuple[str, str]
"""Text with its style."""


class LiveProgress(Progress):
    """A bar with lines of text below it, which wrap where the terminal is narrow."""

    below: tuple[Text, ...] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        """What a refresh shows."""
        yield self.make_tasks_table(self.tasks)
        yield from self.below


def figures(event: Stepped) -> str:
    """Loss, learning rate, gradient norm, tokens per second and MFU; what is unknown is left out."""
    parts = [f"loss {event.loss:.4f}", f"lr {event.learning_rate:.2e}"]
    if event.grad_norm is not None:
        parts.append(f"grad norm {event.grad_norm:.3g}")
    parts.append(f"{event.tokens_per_second:,.0f} tokens/s")
    if event.mfu is not None:
        parts.append(f"MFU {percent(event.mfu)}")
    return " · ".join(parts)


def time_left(event: Stepped) -> str:
    """When the run will end, as its steps went so far."""
    return f"{duration(event.eta_seconds)} left" if event.eta_seconds else ""


def worst_memory(event: Stepped, job: TrainJob) -> str:
    """The process that takes most, beside its prediction."""
    known = [rank for rank in event.memory if rank.process_bytes is not None]
    if not known:
        return "memory unknown"
    worst = max(known, key=lambda rank: rank.process_bytes or 0)
    predicted = job.prediction_of(worst.rank)
    expected = predicted.process_bytes if predicted else None
    return f"memory {size(worst.process_bytes or 0)}" + (f" (predicted {size(expected)})" if expected else "")


def memory_lines(event: Stepped, job: TrainJob) -> Iterator[Text]:
    """A line for each rank: what it has allocated and its process takes, beside the predictions; marked where above."""
    shown = event.memory
    if len(shown) > SHOWN_RANKS:
        shown = tuple(sorted(_farthest_above(shown, job), key=lambda rank: rank.rank))
    yield words("memory / predicted, ! where it is above", style="dim")
    for rank in shown:
        yield words(*_memory(rank, job))
    if len(shown) < len(event.memory):
        yield words(f"and {len(event.memory) - len(shown)} ranks that are nearer to their prediction or below it")


def warning(event: RunWarning) -> Text:
    """A warning where memory is above the prediction, a note where it is below."""
    verb = "allocated" if event.figure == "allocated" else "takes"
    difference = event.measured_bytes / event.predicted_bytes - 1
    side = "above" if difference > 0 else "below"
    text = (
        f"rank {event.rank} {verb} {size(event.measured_bytes)} at step {event.step}, {abs(difference):.1%} {side} the "
        f"prediction of {size(event.predicted_bytes)}: {event.message}"
    )
    return words(("warning: ", "bold red"), (text, "bold")) if difference > 0 else words(f"note: {text}")


def counted_flops(event: CountedFlops) -> str:
    """The FLOPs of a step beside the model's."""
    model = "" if event.model is None else f", {number(event.model / 1e12)} of the model by its profile"
    return f"step {event.step}: {number(event.counted / 1e12)} TFLOPs counted{model} ({event.tokens:,} tokens)"


def _memory(rank: RankMemory, job: TrainJob) -> Iterator[Part]:
    on_gpu = job.device == "cuda"
    tolerance = TOLERANCE if on_gpu else CPU_TOLERANCE
    predicted = job.prediction_of(rank.rank)
    yield (f"{'GPU' if on_gpu else 'process'} {rank.rank}", "")
    if rank.allocated_bytes is not None:
        yield "  allocated ", ""
        yield _beside(rank.allocated_bytes, predicted.allocated_bytes if predicted else None, tolerance)
    if rank.process_bytes is not None:
        yield "  process " if on_gpu else "  resident ", ""
        yield _beside(rank.process_bytes, predicted.process_bytes if predicted else None, tolerance)


def _beside(measured: int, predicted: int | None, tolerance: float) -> Part:
    if not predicted:
        return size(measured), ""
    difference = measured / predicted - 1
    above = difference > tolerance
    found, expected = size(measured), size(predicted)
    if found[-3:] == expected[-3:]:
        found = found[:-4]  # one unit for both
    pair = f"{found} / {expected} {difference:+.1%}"
    return pair + (" !" if above else ""), "bold red" if above else ""


def _farthest_above(ranks: Iterable[RankMemory], job: TrainJob) -> list[RankMemory]:
    def part(rank: RankMemory) -> float:
        predicted = job.prediction_of(rank.rank)
        measured, planned = rank.allocated_bytes, predicted.allocated_bytes if predicted else None
        if measured is None or not planned:
            measured, planned = rank.process_bytes, predicted.process_bytes if predicted else None
        return measured / planned if measured is not None and planned else 0.0

    return sorted(ranks, key=part, reverse=True)[:SHOWN_RANKS]
