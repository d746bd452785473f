"""A plan as text: the choice, its reasons, memory, alternatives, and why others were rejected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from ftplan.planner.ranking import point
from ftplan.render.console import duration, err, out, size, words
from ftplan.render.estimates import print_memory, print_notes, summary, time_line, verdict
from ftplan.render.training import print_training
from ftplan.results import Plan, Point, RejectedGroup

REJECTIONS_SHOWN = 8
PARETO_SHOWN = 8


def print_plan(plan: Plan, written: Sequence[Path] = ()) -> None:
    """The whole answer of ``ftplan plan``."""
    console = out()
    request = plan.request
    title = f"{request.model} on {request.inventory.text}, global batch {plan.global_batch}, {request.seq_len} tokens"
    console.print(words(title, style="bold"))
    if plan.config is None or plan.estimate is None:
        _print_no_plan(plan)
        return
    console.print(words(("plan: ", "bold"), summary(plan.config)))
    console.print(verdict(plan.estimate))
    console.print()
    console.print(_reasons(plan))
    console.print()
    print_memory(plan.estimate)
    console.print(time_line(plan.estimate))
    print_training(plan.estimate.training)
    print_notes(plan.estimate)
    for advice in plan.advice:
        console.print(words((f"{advice.topic.replace('_', ' ')}: ", "bold"), advice.text))
    if plan.alternatives:
        console.print()
        console.print(_fitting("alternatives that fit", map(point, plan.alternatives)))
    if len(plan.pareto) > 1:
        console.print()
        console.print(_fitting("none is faster and smaller than", _spread(plan.pareto)))
    _print_rejections(plan)
    console.print(f"decided {plan.search.candidates} configurations in {duration(plan.search.seconds)}")
    for path in written:
        console.print(words(f"wrote {path}"), soft_wrap=True)


def print_choice(plan: Plan) -> None:
    """The choice alone, on stderr: what a run shows before it starts."""
    assert plan.config is not None
    assert plan.estimate is not None
    console = err()
    console.print(words(("plan: ", "bold"), summary(plan.config)), soft_wrap=True)
    console.print(verdict(plan.estimate))
    console.print(time_line(plan.estimate), soft_wrap=True)


def _print_no_plan(plan: Plan) -> None:
    console = out()
    console.print(words("no plan: nothing fits", style="bold red"))
    if plan.rejections:
        nearest = plan.rejections[0]
        lacking = nearest.rejection.lacking_bytes
        by = f" by {size(lacking)}" if lacking is not None else ""
        console.print(words(f"nearest miss{by}: {summary(nearest.config)}: {nearest.rejection.reason}"))
        if nearest.rejection.hint:
            console.print(words(("hint: ", "bold cyan"), nearest.rejection.hint))
    _print_rejections(plan)


def _reasons(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("choice")
    table.add_column("value")
    table.add_column("because", overflow="fold")
    for reason in plan.reasons:
        table.add_row(reason.field.replace("_", " "), words(reason.value), words(reason.because))
    return table


def _fitting(title: str, points: Iterable[Point]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title, overflow="fold")
    table.add_column("needs", justify="right")
    table.add_column("step", justify="right")
    table.add_column("tokens/s", justify="right")
    for one in points:
        speed = f"{one.tokens_per_second:,.0f}"
        table.add_row(summary(one.config), size(one.needed_bytes), duration(one.step_seconds), speed)
    return table


def _spread(candidates: Sequence[Point]) -> list[Point]:
    """A few of many, from the first to the last."""
    if len(candidates) <= PARETO_SHOWN:
        return list(candidates)
    last = len(candidates) - 1
    return [candidates[round(place * last / (PARETO_SHOWN - 1))] for place in range(PARETO_SHOWN)]


def _print_rejections(plan: Plan) -> None:
    if not plan.rejections:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("rejected, nearest of each kind", overflow="fold")
    table.add_column("lacks", justify="right")
    table.add_column("why", overflow="fold")
    for group in plan.rejections[:REJECTIONS_SHOWN]:
        table.add_row(summary(group.config), _lacks(group), words(group.rejection.reason))
    hidden = len(plan.rejections) - REJECTIONS_SHOWN
    if hidden > 0:
        table.add_row(f"and {hidden} more kinds (--json has all)", "", "")
    out().print()
    out().print(table)


def _lacks(group: RejectedGroup) -> str:
    lacking = group.rejection.lacking_bytes
    return "" if lacking is None else size(lacking)
