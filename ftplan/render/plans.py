"""A plan as text: the choice, its reasons, memory, alternatives, and why others were rejected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ftplan.planner.ranking import point
from ftplan.render.console import aside, duration, out, size, words
from ftplan.render.estimates import print_memory, print_notes, print_speed, speed, summary, verdict
from ftplan.render.tables import Column, print_table
from ftplan.results import Plan, Point, RejectedGroup

REJECTIONS_SHOWN = 8
PARETO_SHOWN = 8
REASONS: Final = (Column("choice", "name"), Column("value", "value", said="{}"), Column("because", "text"))
SPEEDS: Final = (Column("needs"), Column("step"), Column("tokens/s", said="{} tokens/s"))
REJECTED: Final = (Column("rejected, nearest of each kind", "name"), Column("lacks"), Column("why", "text"))


def print_plan(plan: Plan, written: Sequence[Path] = (), *, brief: bool = False) -> None:
    """The answer of ``ftplan plan``, whole or ``brief``."""
    console = out()
    if brief:
        _print_brief(plan)
        return
    request = plan.request
    title = f"{request.model} on {request.inventory.text}, global batch {plan.global_batch}, {request.seq_len} tokens"
    console.print(words(title, style="bold"))
    if plan.config is None or plan.estimate is None:
        _print_no_plan(plan)
        return
    console.print(words(("plan: ", "bold"), summary(plan.config)))
    console.print(verdict(plan.estimate))
    print_speed(plan.estimate)
    for advice in plan.advice:
        console.print(words((f"{advice.topic.replace('_', ' ')}: ", "bold"), advice.text))
    console.print()
    print_table(REASONS, [(reason.field.replace("_", " "), reason.value, reason.because) for reason in plan.reasons])
    console.print()
    print_memory(plan.estimate)
    print_notes(plan.estimate)
    if plan.alternatives:
        _print_points("alternatives that fit", map(point, plan.alternatives))
    if len(plan.pareto) > 1:
        _print_points("none is faster and smaller than", _spread(plan.pareto))
    _print_rejections(plan)
    console.print(f"decided {plan.search.candidates} configurations in {duration(plan.search.seconds)}")
    for path in written:
        console.print(words(f"wrote {path}"), soft_wrap=True)


def _print_brief(plan: Plan) -> None:
    if plan.config is None or plan.estimate is None:
        _print_nearest(plan, folds=False)
        return
    out().print(words(("plan: ", "bold"), summary(plan.config)), soft_wrap=True)
    out().print(verdict(plan.estimate), soft_wrap=True)


def print_choice(plan: Plan) -> None:
    """The choice alone, on stderr: what a run shows before it starts."""
    assert plan.config is not None
    assert plan.estimate is not None
    console = aside()
    console.print(words(("plan: ", "bold"), summary(plan.config)), soft_wrap=True)
    console.print(verdict(plan.estimate))
    console.print(speed(plan.estimate, fits=plan.estimate.fits), soft_wrap=True)


def _print_no_plan(plan: Plan) -> None:
    _print_nearest(plan, folds=True)
    if plan.rejections and plan.rejections[0].rejection.hint:
        out().print(words(("hint: ", "bold cyan"), plan.rejections[0].rejection.hint))
    _print_rejections(plan)


def _print_nearest(plan: Plan, *, folds: bool) -> None:
    out().print(words("no plan: nothing fits", style="bold red"))
    if plan.rejections:
        nearest = plan.rejections[0]
        lacking = nearest.rejection.lacking_bytes
        by = f" by {size(lacking)}" if lacking is not None else ""
        missed = f"nearest miss{by}: {summary(nearest.config)}: {nearest.rejection.reason}"
        out().print(words(missed), soft_wrap=not folds)


def _print_points(title: str, points: Iterable[Point]) -> None:
    rows = [
        (summary(one.config), size(one.needed_bytes), duration(one.step_seconds), f"{one.tokens_per_second:,.0f}")
        for one in points
    ]
    out().print()
    print_table((Column(title, "name"), *SPEEDS), rows)


def _spread(candidates: Sequence[Point]) -> list[Point]:
    """A few of many, from the first to the last."""
    if len(candidates) <= PARETO_SHOWN:
        return list(candidates)
    last = len(candidates) - 1
    return [candidates[round(place * last / (PARETO_SHOWN - 1))] for place in range(PARETO_SHOWN)]


def _print_rejections(plan: Plan) -> None:
    if not plan.rejections:
        return
    rows = [
        (summary(group.config), _lacks(group), group.rejection.reason) for group in plan.rejections[:REJECTIONS_SHOWN]
    ]
    hidden = len(plan.rejections) - REJECTIONS_SHOWN
    if hidden > 0:
        rows.append((f"and {hidden} more kinds (--json has all)", "", ""))
    out().print()
    print_table(REJECTED, rows)


def _lacks(group: RejectedGroup) -> str:
    lacking = group.rejection.lacking_bytes
    return "" if lacking is None else size(lacking)
