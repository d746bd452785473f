"""Tuning as text: a line for each trial as it ends, and the choice."""

from __future__ import annotations

from typing import Final

from ftplan.render.console import SignOfLife, duration, note, off, out, size, words
from ftplan.render.estimates import summary
from ftplan.render.tables import Column, print_table
from ftplan.workflows.tuning import Tried, Tuned

TRIED: Final = (
    Column("tried", "name"),
    Column("tokens/s", said="{} tokens/s"),
    Column("step"),
    Column("predicted is", said="{}"),
    Column("process"),
)
STATUS = {"out_of_memory": "out of memory", "failed": "failed", "no_time": "no time was left for it"}


class TuneDisplay(SignOfLife):
    """Progress on stderr: a line for each trial as it ends, and on a terminal a sign of life."""

    def __init__(self, budget_seconds: float) -> None:
        super().__init__(f"measuring, {duration(budget_seconds)} at most")

    def show(self, tried: Tried) -> None:
        """Show one trial that ended."""
        note(f"{summary(tried.candidate.config)}: {_outcome(tried)}")


def _outcome(tried: Tried) -> str:
    result = tried.result
    if result.tokens_per_second is None:
        message = f": {result.message}" if result.status == "failed" and result.message else ""
        return STATUS.get(result.status, result.status) + message
    return f"{result.tokens_per_second:,.0f} tokens/s"


def print_tuned(tuned: Tuned, *, brief: bool = False) -> None:
    """The choice, and every trial beside its prediction; or the choice alone."""
    console = out()
    assert tuned.plan.config is not None
    console.print(words(("fastest: ", "bold"), summary(tuned.plan.config)), soft_wrap=brief)
    if brief:
        return
    tried = sorted(tuned.tried, key=lambda one: -(one.result.tokens_per_second or 0.0))
    print_table(TRIED, [(summary(one.candidate.config), *_figures(one)) for one in tried])
    console.print(words(f"took {duration(tuned.seconds)}; later plans for these devices go by it"))


def _figures(tried: Tried) -> tuple[str, str, str, str]:
    result, predicted = tried.result, tried.candidate.estimate
    if result.step_seconds is None or result.tokens_per_second is None:
        return (STATUS.get(result.status, result.status), "", "", "")
    process = "" if result.process_bytes is None else size(result.process_bytes)
    expected = predicted.step_seconds if predicted else None
    return (
        f"{result.tokens_per_second:,.0f}",
        duration(result.step_seconds),
        off(expected, result.step_seconds),
        process,
    )
