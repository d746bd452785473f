"""Answers of ``ftplan need`` and ``ftplan max`` as text."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from ftplan.planner.limits import Limit
from ftplan.planner.need import Sufficient
from ftplan.render.console import out, size, words
from ftplan.render.estimates import summary
from ftplan.render.tables import Cell, Column, print_table
from ftplan.spec import PlanRequest
from ftplan.workflows.inverse import Reach

NAMES = {"seq_len": "longest sequence", "micro_batch": "largest micro-batch", "lora_rank": "highest rank"}
SPEED: Final = (Column("needs"), Column("tokens/s", said="{} tokens/s"))
LIMITS: Final = (Column("", "name"), Column("", said="{}"), Column("", said="needs {}"), Column("", "text"))
UNITS = {"seq_len": "tokens", "micro_batch": "samples", "lora_rank": ""}


def print_needs(request: PlanRequest, found: Iterable[Sufficient], *, brief: bool = False) -> bool:
    """A table for each method, or a line, as they are found; whether any cards suffice."""
    console = out()
    title = (
        f"{request.model}, global batch {request.global_batch}, {request.seq_len} tokens: the fewest cards that suffice"
    )
    any_fits = False
    for method, of_it in groupby(found, key=lambda row: row.method):
        if title and not brief:
            console.print(words(title, style="bold"))  # not before: bad input shows with the first row
            title = ""
        rows = list(of_it)
        any_fits = any_fits or any(row.inventory is not None for row in rows)
        if brief:
            enough = [row.inventory for row in rows if row.inventory is not None]
            console.print(words((f"{method}: ", "bold"), ", ".join(enough) or "no cards suffice"), soft_wrap=True)
        else:
            _print_method(rows)
    return any_fits


def _print_method(rows: list[Sufficient]) -> None:
    out().print()
    able = [row for row in rows if row.candidate is not None and row.candidate.estimate is not None]
    if able:
        priced = any(row.dollars_per_hour is not None for row in able)
        prices = (Column("$/h", said="{} $/h"), Column("$/M tokens", said="{} $/M tokens")) if priced else ()
        columns = (Column(rows[0].method, "name"), *SPEED, *prices, Column("how", "text"))
        print_table(columns, [_sufficient(row, priced=priced) for row in able])
    if len(able) < len(rows):
        missed = ", ".join(row.card for row in rows if row not in able)
        out().print(words((f"{rows[0].method}: ", "bold"), f"no number of {missed} that was tried suffices"))


def _sufficient(row: Sufficient, *, priced: bool) -> tuple[Cell, ...]:
    assert row.candidate is not None
    assert row.candidate.estimate is not None
    told = row.candidate.estimate
    prices = (_dollars(row.dollars_per_hour), _dollars(row.dollars_per_million_tokens)) if priced else ()
    figures = (size(told.needed_bytes), f"{told.tokens_per_second:,.0f}")
    return (row.inventory or "", *figures, *prices, summary(row.candidate.config))


def _dollars(value: float | None) -> str:
    """Cents; of less than ten of them two digits, because small models train for less than one."""
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def print_reach(reach: Reach, *, brief: bool = False) -> None:
    """The limits of each method, and the configuration that has them; or a line for each method."""
    console = out()
    if brief:
        _print_brief(reach)
        return
    request = reach.request
    title = (
        f"{request.model} on {request.inventory.text}, {request.seq_len} tokens, global batch {request.global_batch}"
    )
    console.print(words(title, style="bold"))
    for one in reach.limits:
        console.print()
        console.print(words((one.method, "bold"), f": {one.because}"))
        print_table(LIMITS, [_limit(each) for each in one.limits], has_head=False)
    for method in reach.refused:
        console.print(words((f"{method}: ", "bold"), "does not fit at any length"))
    console.print(words("each limit is with all else as above; what is not pinned is the planner's choice"))


def _print_brief(reach: Reach) -> None:
    for one in reach.limits:
        told = ", ".join(f"{NAMES[limit.field]} {_value(limit)}" for limit in one.limits)
        out().print(words((f"{one.method}: ", "bold"), told), soft_wrap=True)
    for method in reach.refused:
        out().print(words((f"{method}: ", "bold"), "does not fit at any length"), soft_wrap=True)


def _value(limit: Limit) -> str:
    if limit.candidate is None or limit.candidate.estimate is None:
        return "none"
    return f"{limit.value:,} {UNITS[limit.field]}".strip()


def _limit(limit: Limit) -> tuple[Cell, ...]:
    if limit.candidate is None or limit.candidate.estimate is None:
        return (NAMES[limit.field], _value(limit), "", "not even the smallest fits")
    return (
        NAMES[limit.field],
        _value(limit),
        size(limit.candidate.estimate.needed_bytes),
        summary(limit.candidate.config) + _beyond(limit),
    )


def _beyond(limit: Limit) -> str:
    return f" (the model was made for {limit.positions:,} positions)" if limit.positions is not None else ""
