"""The report of a run as text, and a list of runs."""

from __future__ import annotations

from typing import Final

from rich.console import Console

from ftplan.launcher import demo
from ftplan.launcher.history import Curve
from ftplan.render.console import duration, out, size, words
from ftplan.render.curves import plot, sparkline
from ftplan.render.estimates import summary
from ftplan.render.figures import print_figures, speed_line
from ftplan.render.tables import Column, print_table
from ftplan.workflows.reporting import AttemptReport, RunLine, RunReport

PLOT_HEIGHT: Final = 6
NAME_WIDTH: Final = 15
RANGE_WIDTH: Final = 30
PHASES: Final = (Column("predicted by phase", "name"), Column("allocated", said="{}"), Column("", "bar", width=24))
RANKS: Final = (
    Column("rank", "name", said="rank {}"),
    Column("allocated"),
    Column("reserved"),
    Column("process"),
    Column("host RAM"),
)
ATTEMPTS: Final = (
    Column("attempt", "name", said="attempt {}"),
    Column("from", said="from {}"),
    Column("steps"),
    Column("processes", said="{} process(es)"),
    Column("training"),
    Column("ended", "text"),
)
RUNS: Final = (
    Column("run", "name"),
    Column("state", "value", said="{}"),
    Column("steps", said="{} steps"),
    Column("loss"),
    Column("what", "text"),
)
STYLES: Final = {"finished": "bold green", "running": "bold cyan"}


def print_report(report: RunReport, *, brief: bool = False) -> None:
    """Everything the folder tells, most asked first; or how the run stands, and what next."""
    console = out()
    if brief:
        _print_brief(report)
        return
    _head(console, report)
    console.print()
    print_figures(report.predicted, report.measured)
    if speed := speed_line(report.measured):
        console.print(speed)
    _phases(console, report)
    _ranks(console, report)
    _curves(console, report)
    _attempts(console, report)
    _checkpoints(console, report)
    _tail(console, report)


def _print_brief(report: RunReport) -> None:
    of = f" of {report.total_steps}" if report.total_steps is not None else ""
    losses = (f", loss {_span(curve)}" for curve in report.curves if curve.name == "loss")
    told = f", {report.steps}{of} steps{next(losses, '')}"
    state = (report.state, STYLES.get(report.state, "bold yellow"))
    out().print(words((report.run_id, "bold"), ": ", state, told), soft_wrap=True)
    if report.way_on:
        out().print(words(f"next: {report.way_on}"), soft_wrap=True)


def _head(console: Console, report: RunReport) -> None:
    of = f" of {report.total_steps}" if report.total_steps is not None else ""
    state = f"{report.state} on {report.host}" if report.state == "running" else report.state
    kind = " (a rehearsal: random weights and tokens)" if report.is_rehearsal else ""
    console.print(words((report.run_id, "bold"), f"{kind}: ", (state, STYLES.get(report.state, "bold yellow"))))
    console.print(words(f"{_model(report.config.model)} on {report.inventory}: {summary(report.config)}"))
    done = f"{report.steps}{of} steps of {report.global_batch} samples, {report.tokens:,} tokens"
    console.print(words(done))
    times = [f"training {duration(report.train_seconds)}"]
    if report.save_seconds:
        saves = f"saving {duration(sum(report.save_seconds))} ({len(report.save_seconds)} times, "
        times.append(saves + f"{duration(max(report.save_seconds))} at most)")
    if report.wall_seconds is not None:
        times.append(f"the newest attempt {duration(report.wall_seconds)} with its start")
    if report.steps:
        console.print(words(", ".join(times)))


def _phases(console: Console, report: RunReport) -> None:
    if not report.phases:
        return
    highest = max(report.phases.values())
    rows = [(phase, size(peak), peak / highest if highest else 0.0) for phase, peak in report.phases.items()]
    console.print()
    print_table(PHASES, rows)


def _ranks(console: Console, report: RunReport) -> None:
    if len(report.memory) < 2:
        return
    rows = []
    for memory in report.memory:
        figures = (memory.allocated_bytes, memory.reserved_bytes, memory.process_bytes, memory.host_bytes)
        rows.append((str(memory.rank), *(size(figure) if figure is not None else "-" for figure in figures)))
    console.print()
    print_table(RANKS, rows)


def _curves(console: Console, report: RunReport) -> None:
    width = max(10, console.width - NAME_WIDTH - RANGE_WIDTH)
    for curve in report.curves:
        if curve.name == "loss":
            console.print()
            _plotted(console, curve, width)
        else:
            line = f"{curve.name:<{NAME_WIDTH}}{sparkline(curve.values, width)}  {_span(curve)}"
            console.print(words(line), no_wrap=True, overflow="crop")


def _plotted(console: Console, curve: Curve, width: int) -> None:
    lines = plot(curve.values, width, PLOT_HEIGHT)
    for index, line in enumerate(lines):
        name = curve.name if index == 0 else ""
        told = {0: f"highest {figure(max(curve.values))}", PLOT_HEIGHT - 1: _span(curve)}.get(index, "")
        console.print(words(f"{name:<{NAME_WIDTH}}{line:<{min(width, len(curve.values))}}  {told}".rstrip()))


def _span(curve: Curve) -> str:
    return f"{figure(curve.values[0])} -> {figure(curve.values[-1])}"


def figure(value: float) -> str:
    """Four digits, or a power of ten."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _attempts(console: Console, report: RunReport) -> None:
    if not report.attempts:
        return
    console.print()
    print_table(ATTEMPTS, [_attempt(attempt) for attempt in report.attempts])


def _attempt(attempt: AttemptReport) -> tuple[str, ...]:
    return (
        str(attempt.number),
        "the start" if attempt.resumed_from_step is None else f"step {attempt.resumed_from_step}",
        "none" if attempt.first_step is None else f"{attempt.first_step} to {attempt.last_step}",
        "-" if attempt.world_size is None else str(attempt.world_size),
        duration(attempt.step_seconds),
        "; ".join([attempt.ended, *attempt.changes]),
    )


def _checkpoints(console: Console, report: RunReport) -> None:
    if not report.checkpoints and not report.incomplete:
        return
    console.print()
    for checkpoint in report.checkpoints:
        text = f"checkpoint of step {checkpoint.step}: complete, {size(checkpoint.size_bytes)}, "
        console.print(words(f"{text}{checkpoint.world_size} process(es)"))
    for folder in report.incomplete:
        console.print(words(f"incomplete, and never resumed from: {folder}"), soft_wrap=True)


def _tail(console: Console, report: RunReport) -> None:
    if report.attempts and report.attempts[-1].hint:
        console.print(words(f"hint: {report.attempts[-1].hint}"), soft_wrap=True)
    for note in report.notes:
        console.print(words(f"note: {note}"), soft_wrap=True)
    if report.unreadable_lines:
        console.print(words(f"note: {report.unreadable_lines} lines of metrics.jsonl could not be read"))
    if report.final:
        console.print(words(f"result: {report.final}"), soft_wrap=True)
    if report.way_on:
        console.print(words(f"next: {report.way_on}"), soft_wrap=True)


def print_runs(runs: tuple[RunLine, ...], *, brief: bool = False) -> None:
    """A line for each run, the newest last."""
    if brief:
        for run in runs:
            out().print(words(f"{run.folder}: {run.state or run.problem}"), soft_wrap=True)
        return
    print_table(RUNS, [_run(run) for run in runs])


def _run(run: RunLine) -> tuple[str, ...]:
    if run.config is None:
        return (run.folder, "-", "-", "-", run.problem)
    loss = "-"
    if run.first_loss is not None and run.last_loss is not None:
        loss = f"{figure(run.first_loss)} -> {figure(run.last_loss)}"
    of = f"/{run.total_steps}" if run.total_steps is not None else ""
    what = f"{_model(run.config.model)} on {run.inventory}, {run.config.method}, {run.config.sharding}"
    return (run.folder, run.state or "", f"{run.steps}{of}", loss, what)


def _model(name: str) -> str:
    return "the demo's model" if name == str(demo.model_path()) else name
