"""A run as text: what would be started, progress while it trains, and the record at its end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ftplan.launcher.engine import Prepared
from ftplan.launcher.events import (
    Evaluated,
    Event,
    Failed,
    FlopsCounted,
    Noted,
    Profiled,
    Recovering,
    Saved,
    Started,
    Stepped,
    Warned,
)
from ftplan.launcher.failures import OUT_OF_MEMORY
from ftplan.launcher.job import TrainJob
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.render import live
from ftplan.render.console import aside, count, duration, err, is_live, out, words
from ftplan.render.figures import print_figures, speed_line
from ftplan.render.live import LiveProgress
from ftplan.render.progress import ProgressDisplay
from ftplan.results import RunRecord


class RunDisplay(ProgressDisplay):
    """Progress of a run on stderr: a bar on a terminal, a line now and then elsewhere."""

    LINES = 10
    """Lines of progress where there is no terminal."""

    BAR_FROM = 45
    """Columns of a terminal that has room for a bar."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._live = LiveProgress(
            TextColumn("step"),
            MofNCompleteColumn(),
            *([BarColumn(min(40, err().width - 35))] if err().width >= self.BAR_FROM else []),
            TextColumn("{task.description}"),
            console=err(),
            disable=not is_live(),
        )
        super().__init__(self._live)
        self._task = self._progress.add_task("starting", total=None)

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Recovering):
            self._recovering(event)
        elif isinstance(event, Warned):
            err().print(live.warning(event), soft_wrap=True)
        elif isinstance(event, Failed):
            err().print(words(f"rank {event.rank} failed: {event.message}"), soft_wrap=True)
        elif type(event) in _LINES:
            self._line(_LINES[type(event)](event))

    def _started(self, event: Started) -> None:
        resumed = f", resumed from step {event.resumed_from_step}" if event.resumed_from_step is not None else ""
        self._line(
            f"training {count(event.trainable_params)} of {count(event.total_params)} parameters on {event.samples} "
            f"samples, {event.world_size} process(es), global batch {event.global_batch}{resumed}"
        )
        self._progress.update(self._task, total=event.total_steps, completed=event.resumed_from_step or 0)

    def _recovering(self, event: Recovering) -> None:
        line = recovery_line(event.kind, event.message, event.from_step, event.changed)
        err().print(words(line), soft_wrap=True)
        expected = {"predicted": event.predicted, "predicted_ranks": event.predicted_ranks}
        self._job = self._job.model_copy(update=expected)

    def _step(self, event: Stepped) -> None:
        left, figures = live.time_left(event), live.figures(event)
        self._live.below = (words(figures), *live.memory_lines(event, self._job))
        self._progress.update(self._task, completed=event.step, description=left)
        every = max(1, event.total_steps // self.LINES)
        if self._progress.disable and (event.step % every == 0 or event.step == event.total_steps):
            place = f"step {event.step}/{event.total_steps}" + (f" · {left}" if left else "")
            self._line(f"{place} · {figures} · {live.worst_memory(event, self._job)}")

    def _line(self, text: str) -> None:
        aside().print(words(text), soft_wrap=True)


def recovery_line(kind: str, message: str, from_step: int | None, changed: Mapping[str, tuple[object, object]]) -> str:
    """A recovery in one sentence."""
    where = "from its start" if from_step is None else f"from step {from_step}"
    changes = ", ".join(f"{name.replace('_', ' ')} {old} -> {new}" for name, (old, new) in changed.items())
    why = "out of memory" if kind in OUT_OF_MEMORY else message
    return f"{why}: going on {where}" + (f" with {changes}" if changes else ", nothing changed")


_LINES: Final[Mapping[type, Callable[[Any], str]]] = {
    Saved: lambda event: f"checkpoint at step {event.step} ({duration(event.seconds)})",
    Evaluated: lambda event: f"evaluation at step {event.step}: loss {event.loss:.4f}",
    Noted: lambda event: f"note: {event.message}",
    FlopsCounted: live.counted_flops,
    Profiled: lambda event: f"profile of steps {event.first_step} to {event.last_step}: {', '.join(event.paths)}",
}
"""Events that are one line."""


def print_meeting(meeting: Rendezvous) -> None:
    """Which of several machines this is, and where they meet; on stderr."""
    nodes = f"{meeting.min_nodes} to {meeting.nodes}" if meeting.is_elastic else f"{meeting.nodes}"
    where = f"rendezvous {meeting.id} at {meeting.endpoint} (from {meeting.origin})"
    waits = f"waiting up to {duration(meeting.join_seconds)} for each other"
    aside().print(words(f"node {meeting.node_rank} of {nodes}, {where}, {waits}"), soft_wrap=True)


def print_prepared(prepared: Prepared, *, brief: bool = False) -> None:
    """What a dry run would start: command, environment, files; or the command alone."""
    console = out()
    if brief:
        console.print(words(shlex.join(prepared.argv)), soft_wrap=True)
        return
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


def print_record(record: RunRecord, path: Path, way_on: str, *, brief: bool = False) -> None:
    """The end of a run: loss, and every figure predicted beside measured; ``way_on`` is the command that goes on."""
    console = out()
    loss = ""
    if record.first_loss is not None and record.last_loss is not None:
        loss = f", loss {record.first_loss:.4f} -> {record.last_loss:.4f}"
    style = "bold green" if record.status == "finished" else "bold yellow"
    steps = f": {record.steps} steps in {duration(record.wall_seconds)}{loss}"
    console.print(words((record.status, style), steps))
    if not brief:
        _print_comparison(record, path)
    if way_on:
        console.print(words(f"go on: {way_on}"), soft_wrap=True)


def _print_comparison(record: RunRecord, path: Path) -> None:
    console = out()
    print_figures(record.predicted, record.measured)
    for each in record.recoveries:
        console.print(words(recovery_line(each.kind, each.message, each.from_step, each.changed)), soft_wrap=True)
    for warned in record.warnings:
        console.print(live.warning(warned), soft_wrap=True)
    if speed := speed_line(record.measured):
        console.print(speed)
    console.print(words(f"record: {path}"), soft_wrap=True)
