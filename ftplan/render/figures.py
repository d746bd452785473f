"""Predicted beside measured: the figures of a run as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ftplan.render.console import duration, off, percent, size
from ftplan.render.tables import Cell, Column, print_table
from ftplan.results import Measured

FIGURES: Final[tuple[tuple[str, str, Callable[[float], str]], ...]] = (
    ("peak allocated", "peak_allocated_bytes", size),
    ("peak reserved", "peak_reserved_bytes", size),
    ("peak process", "peak_process_bytes", size),
    ("host RAM", "host_bytes", size),
    ("step", "step_seconds", duration),
    ("MFU", "mfu", percent),
)
"""Tokens per second are not among them: they are predicted for samples of full length, and most are shorter."""


def speed_line(measured: Measured) -> str:
    """The measured tokens per second, empty where they are not known."""
    speed = measured.tokens_per_second
    return "" if speed is None else f"{speed:,.0f} tokens/s (the prediction is for samples of full length)"


def print_figures(predicted: Measured, measured: Measured) -> None:
    """A row for each figure that is known on either side."""
    rows: list[tuple[Cell, ...]] = []
    for name, field, show in FIGURES:
        expected, found = getattr(predicted, field), getattr(measured, field)
        if expected is None and found is None:
            continue
        shown = [show(value) if value is not None else "-" for value in (expected, found)]
        rows.append((name, *shown, off(expected, found) if found is not None else ""))
    columns = (Column("", "name"), Column("predicted"), Column("measured"), Column("predicted is", said="{}"))
    print_table(columns, rows)
