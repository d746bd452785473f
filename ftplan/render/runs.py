"""A run as text: what would be started, progress while it trains, and the record at its end."""

from __future__ import annotations

import shlex
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ftplan.launcher.engine import Prepared
from ftplan.launcher.events import Evaluated, Event, Failed, Noted, Saved, Started, Stepped
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.render.console import count, duration, err, off, out, size, words
from ftplan.results import Measured, RunRecord


class RunDisplay:
    """Progress of a run on stderr: a bar on a terminal, a line now and then elsewhere."""

    LINES = 10
    """Lines of progress where there is no terminal."""

    def __init__(self, predicted: Measured) -> None:
        self._predicted = predicted
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=err(),
            disable=not err().is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Saved):
            self._line(f"checkpoint at step {event.step} ({duration(event.seconds)})")
        elif isinstance(event, Evaluated):
            self._line(f"evaluation at step {event.step}: loss {event.loss:.4f}")
        elif isinstance(event, Noted):
            self._line(f"note: {event.message}")
        elif isinstance(event, Failed):
            self._line(f"rank {event.rank} failed: {event.message}")

    def _started(self, event: Started) -> None:
        resumed = f", resumed from step {event.resumed_from_step}" if event.resumed_from_step is not None else ""
        self._line(
            f"training {count(event.trainable_params)} of {count(event.total_params)} parameters on {event.samples} "
            f"samples, {event.world_size} process(es), global batch {event.global_batch}{resumed}"
        )
        self._progress.update(self._task, total=event.total_steps, completed=event.resumed_from_step or 0)

    def _step(self, event: Stepped) -> None:
        text = f"loss {event.loss:.4f} · {event.tokens_per_second:,.0f} tokens/s · {self._memory(event)}"
        self._progress.update(self._task, completed=event.step, description=text)
        every = max(1, event.total_steps // self.LINES)
        if self._progress.disable and (event.step % every == 0 or event.step == event.total_steps):
            self._line(f"step {event.step}/{event.total_steps} · {text}")

    def _memory(self, event: Stepped) -> str:
        used = [memory.process_bytes for memory in event.memory if memory.process_bytes is not None]
        if not used:
            return "memory unknown"
        expected = self._predicted.peak_process_bytes
        return f"memory {size(max(used))}" + (f" (predicted {size(expected)})" if expected else "")

    def _line(self, text: str) -> None:
        err().print(words(text), soft_wrap=True)


def print_meeting(meeting: Rendezvous) -> None:
    """Which of several machines this is, and where they meet; on stderr."""
    nodes = f"{meeting.min_nodes} to {meeting.nodes}" if meeting.is_elastic else f"{meeting.nodes}"
    where = f"rendezvous {meeting.id} at {meeting.endpoint} (from {meeting.origin})"
    waits = f"waiting up to {duration(meeting.join_seconds)} for each other"
    err().print(words(f"node {meeting.node_rank} of {nodes}, {where}, {waits}"), soft_wrap=True)


def print_prepared(prepared: Prepared) -> None:
    """What a dry run would start: command, environment, files."""
    console = out()
    console.print(words("command", style="bold"))
    console.print(words("  " + " ".join(shlex.quote(word) for word in prepared.argv)), soft_wrap=True)
    console.print(words("environment", style="bold"))
    for name, value in sorted(prepared.env.items()):
        why = prepared.reasons.get(name, "")
        comment = (f"  # {why}", "dim") if why else ""
        console.print(words(f"  {name}={shlex.quote(value)}", comment), soft_wrap=True)
    if prepared.timeout_seconds is not None:
        console.print(words(f"a rank waits {duration(prepared.timeout_seconds)} for the others"))
    for note in prepared.notes:
        console.print(words(f"note: {note}"), soft_wrap=True)
    for path, text in prepared.files.items():
        console.print(words(path, style="bold"), soft_wrap=True)
        console.print(words(text), soft_wrap=True)


def print_record(record: RunRecord, folder: str) -> None:
    """The end of a run: loss, and every figure predicted beside measured."""
    console = out()
    loss = ""
    if record.first_loss is not None and record.last_loss is not None:
        loss = f", loss {record.first_loss:.4f} -> {record.last_loss:.4f}"
    style = "bold green" if record.status == "finished" else "bold yellow"
    steps = f": {record.steps} steps in {duration(record.wall_seconds)}{loss}"
    console.print(words((record.status, style), steps))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "predicted", "measured", "predicted is"):
        table.add_column(column, justify="left" if not column else "right")
    for name, of, show in _FIGURES:
        predicted, measured = getattr(record.predicted, of), getattr(record.measured, of)
        if measured is not None:
            expected = show(predicted) if predicted is not None else "-"
            table.add_row(name, expected, show(measured), off(predicted, measured))
    console.print(table)
    if record.measured.tokens_per_second is not None:
        console.print(
            f"{record.measured.tokens_per_second:,.0f} tokens/s (the prediction is for samples of full length)"
        )
    console.print(words(f"record: {folder}/record.json"), soft_wrap=True)
    if record.status == "interrupted":
        console.print(words(f"resume: ftplan run --resume --run-dir {shlex.quote(folder)}"), soft_wrap=True)


_FIGURES = (
    ("peak allocated", "peak_allocated_bytes", size),
    ("peak reserved", "peak_reserved_bytes", size),
    ("peak process", "peak_process_bytes", size),
    ("host RAM", "host_bytes", size),
    ("step", "step_seconds", duration),
)
