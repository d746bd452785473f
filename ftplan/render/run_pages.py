"""Runs as pieces of a page: one that is watched, one that starts, and a list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from ftplan.launcher import demo
from ftplan.launcher.events import RankMemory
from ftplan.launcher.memory_watch import CPU_TOLERANCE, TOLERANCE
from ftplan.render.charts.bars import Row, bars
from ftplan.render.charts.lines import figure, line
from ftplan.render.console import duration, off, size
from ftplan.render.estimates import summary
from ftplan.render.figures import FIGURES
from ftplan.render.pages import rendered
from ftplan.results import to_jsonable
from ftplan.workflows.reporting import RunLine, RunReport

STATES: Final = {"finished": "fits", "running": "unsure", "failed": "short", "abandoned": "short"}
"""How a state is coloured; the others are unsure."""
KINDS: Final = {size: "size", duration: "duration"}


def run_piece(report: RunReport, log: str) -> str:
    """All that a run's folder tells: progress, curves, memory beside its prediction, attempts, the log's end."""
    drawn = [
        (curve.name, Markup(line(curve.name, curve.steps, curve.values, total_steps=report.total_steps)))  # noqa: S704
        for curve in report.curves
    ]
    at = next((index for index, curve in enumerate(report.curves) if curve.name == "loss"), None)
    return rendered(
        "run.html.j2",
        to_jsonable(report),
        report=report,
        name=Path(report.folder).name,
        model=model_name(report.config.model),
        state_kind=STATES.get(report.state, "unsure"),
        progress_text=_progress(report),
        curves=drawn,
        losses="" if at is None else f"curves.{at}.values",
        loss_count=0 if at is None else len(report.curves[at].values),
        figures=list(_figures(report)),
        memory=_memory(report),
        log=log,
    )


def starting_piece(name: str, output: str, exit_code: int | None) -> str:
    """A run that has no folder yet: what it says while it starts, or why it did not."""
    return rendered("starting.html.j2", {}, name=name, log=output, exit_code=exit_code)


def runs_piece(runs: tuple[RunLine, ...]) -> str:
    """A table of runs, the newest first."""
    rows = [
        {
            "name": Path(run.folder).name,
            "config": run.config,
            "problem": run.problem,
            "state": run.state,
            "steps": run.steps,
            "total_steps": run.total_steps,
            "loss": _loss(run),
            "what": _what(run),
        }
        for run in reversed(runs)
    ]
    return rendered("runs.html.j2", {}, runs=rows)


def model_name(name: str) -> str:
    """A model as people call it."""
    return "the demo's model" if name == str(demo.model_path()) else name


def _progress(report: RunReport) -> str:
    of = f" of {report.total_steps}" if report.total_steps is not None else ""
    ended = f"; {report.attempts[-1].ended}" if report.state in ("failed", "abandoned") and report.attempts else ""
    if report.state == "running" and report.steps == report.total_steps:
        ended = "; it saves what it learned"
    return f"{report.steps}{of} steps of {report.global_batch} samples{ended}"


def _figures(report: RunReport) -> Any:
    for name, field, show in FIGURES:
        predicted, measured = getattr(report.predicted, field), getattr(report.measured, field)
        if predicted is None and measured is None:
            continue
        yield {
            "name": name,
            "field": field,
            "kind": KINDS.get(show, "percent"),
            "predicted": predicted,
            "measured": measured,
            "off": off(predicted, measured) if measured is not None else "",
        }


def _memory(report: RunReport) -> Markup | str:
    predicted = {memory.rank: memory for memory in report.predicted_memory}
    tolerance = CPU_TOLERANCE if "cpu" in report.inventory else TOLERANCE
    rows = [row for memory in report.memory for row in _bars(memory, predicted.get(memory.rank), tolerance)]
    return Markup(bars(rows, "Peak of each process", "framed by its prediction", name="memory")) if rows else ""  # noqa: S704


def _bars(measured: RankMemory, predicted: RankMemory | None, tolerance: float) -> list[Row]:
    if measured.process_bytes is None:
        return []
    expected = predicted.process_bytes if predicted is not None else None
    told = size(measured.process_bytes) + (f" of {size(expected)}" if expected else "")
    kind = "kind-short" if expected and measured.process_bytes > (1 + tolerance) * expected else "kind-fits"
    data = {"data-rank": measured.rank, "data-bytes": measured.process_bytes, "data-predicted-bytes": expected or ""}
    return [Row(f"process {measured.rank}", measured.process_bytes, told, kind, data, frame=expected or 0)]


def _loss(run: RunLine) -> str:
    if run.first_loss is None or run.last_loss is None:
        return "–"
    return f"{figure(run.first_loss)} → {figure(run.last_loss)}"


def _what(run: RunLine) -> str:
    if run.config is None:
        return ""
    return f"{model_name(run.config.model)} on {run.inventory}: {summary(run.config)}"
