"""Answers of ``ftplan need`` and ``ftplan max`` as text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from ftplan.planner.limits import Limit, Limits
from ftplan.planner.need import Sufficient
from ftplan.render.console import out, size, words
from ftplan.render.estimates import summary
from ftplan.spec import PlanRequest
from ftplan.workflows.inverse import Reach

NAMES = {"seq_len": "longest sequence", "micro_batch": "largest micro-batch", "lora_rank": "highest rank"}
UNITS = {"seq_len": "tokens", "micro_batch": "samples", "lora_rank": ""}


def print_needs(request: PlanRequest, found: Iterable[Sufficient]) -> bool:
    """A table for each method, as they are found; whether any cards suffice."""
    console = out()
    title = (
        f"{request.model}, global batch {request.global_batch}, {request.seq_len} tokens: the fewest cards that suffice"
    )
    any_fits = False
    method = ""
    rows: list[Sufficient] = []
    for row in found:
        if not method:
            console.print(words(title, style="bold"))  # not before: bad input shows with the first row
        if row.method != method:
            _print_method(rows)
            method, rows = row.method, []
        rows.append(row)
        any_fits = any_fits or row.inventory is not None
    _print_method(rows)
    return any_fits


def _print_method(rows: list[Sufficient]) -> None:
    if not rows:
        return
    console = out()
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(rows[0].method, overflow="fold")
    table.add_column("needs", justify="right", overflow="fold")
    table.add_column("tokens/s", justify="right", overflow="fold")
    priced = any(row.dollars_per_hour is not None for row in rows)
    if priced:
        table.add_column("$/h", justify="right", overflow="fold")
        table.add_column("$/M tokens", justify="right", overflow="fold")
    table.add_column("how", overflow="fold")
    refused = []
    for row in rows:
        if row.candidate is None or row.candidate.estimate is None:
            refused.append(row)
            continue
        told = row.candidate.estimate
        prices = (_dollars(row.dollars_per_hour), _dollars(row.dollars_per_million_tokens)) if priced else ()
        figures = (size(told.needed_bytes), f"{told.tokens_per_second:,.0f}")
        table.add_row(row.inventory or "", *figures, *prices, summary(row.candidate.config))
    if table.row_count:
        console.print(table)
    if refused:
        missed = ", ".join(row.card for row in refused)
        console.print(words((f"{rows[0].method}: ", "bold"), f"no number of {missed} that was tried suffices"))


def _dollars(value: float | None) -> str:
    """Cents; of less than ten of them two digits, because small models train for less than one."""
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def print_reach(reach: Reach) -> None:
    """The limits of each method, and the configuration that has them."""
    console = out()
    request = reach.request
    title = (
        f"{request.model} on {request.inventory.text}, {request.seq_len} tokens, global batch {request.global_batch}"
    )
    console.print(words(title, style="bold"))
    for one in reach.limits:
        console.print()
        console.print(words((one.method, "bold"), f": {one.because}"))
        console.print(_limits(one))
    for method in reach.refused:
        console.print(words((f"{method}: ", "bold"), "does not fit at any length"))
    console.print(words("each limit is with all else as above; what is not pinned is the planner's choice"))


def _limits(found: Limits) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("what", overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    table.add_column("needs", justify="right", overflow="fold")
    table.add_column("how", overflow="fold")
    for limit in found.limits:
        if limit.candidate is None or limit.candidate.estimate is None:
            table.add_row(NAMES[limit.field], "none", "", "not even the smallest fits")
            continue
        table.add_row(
            NAMES[limit.field],
            f"{limit.value:,} {UNITS[limit.field]}".strip(),
            size(limit.candidate.estimate.needed_bytes),
            summary(limit.candidate.config) + _beyond(limit),
        )
    return table


def _beyond(limit: Limit) -> str:
    return f" (the model was made for {limit.positions:,} positions)" if limit.positions is not None else ""
