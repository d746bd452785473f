"""Rows of a catalogue as text: a table where it fits the terminal, paragraphs that fold where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ftplan.render.console import err, out, words
from ftplan.render.tables import print_folded, print_parts

GAP: Final = "  "
LEAST_NAME: Final = 24
"""Where long names would get fewer characters there is no table; one that is longer has a line of its own."""


@dataclass(frozen=True)
class Column:
    """The head of a column; a paragraph writes it before the value, and ``unit`` after it."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Item:
    """A row: its name, a text for each column, empty where there is none, and lines of what no column has."""

    name: str
    values: tuple[str, ...]
    notes: tuple[str, ...] = ()


def print_listing(what: str, columns: Sequence[Column], items: Sequence[Item]) -> None:
    """All items under ``columns``, those without any value left out; ``what`` heads the names."""
    used = [place for place in range(len(columns)) if any(item.values[place] for item in items)]
    shown = [columns[place] for place in used]
    rows = [tuple(item.values[place] for place in used) for item in items]
    widths = [max(map(len, (head.name, head.unit, *cells))) for head, *cells in zip(shown, *rows, strict=True)]
    longest = max(len(what), *(len(item.name) for item in items))
    room = min(longest, out().width - sum(widths) - len(GAP) * len(widths))
    if room < min(longest, LEAST_NAME):
        _print_paragraphs(columns, items)
        return
    out().print(words(_aligned(what.ljust(room), [head.name for head in shown], widths), style="dim"))
    out().print(words(_aligned(" " * room, [head.unit for head in shown], widths), style="dim"))
    for item, row in zip(items, rows, strict=True):
        _print_row(item, row, room, widths)


def print_names(items: Sequence[str]) -> None:
    """Names alone, one a line."""
    for item in items:
        out().print(words(item), soft_wrap=True)


def print_nothing(what: str, search: Sequence[str], hint: str, *, brief: bool) -> None:
    """That nothing was found, and what to try; ``brief``: where only names are asked for, it is none of them."""
    console = err() if brief else out()
    console.print(words(f"no {what} found{' for ' if search else ''}{' '.join(search)}"))
    err().print(words(("hint: ", "bold cyan"), hint), soft_wrap=True)


def _aligned(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    """A name and cells of a line, these aligned to the right."""
    return GAP.join((name, *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))).rstrip()


def _print_row(item: Item, cells: Sequence[str], room: int, widths: Sequence[int]) -> None:
    fits = len(item.name) <= room
    if not fits:
        out().print(words(item.name))
    out().print(words(_aligned((item.name if fits else "").ljust(room), cells, widths)))
    print_folded(item.notes, indent=GAP, style="dim")


def _print_paragraphs(columns: Sequence[Column], items: Sequence[Item]) -> None:
    for item in items:
        out().print(words(item.name, style="bold"))
        for line in (" · ".join(_told(columns, item)), *item.notes):
            print_parts(words(line), indent=GAP)


def _told(columns: Sequence[Column], item: Item) -> Iterator[str]:
    for column, value in zip(columns, item.values, strict=True):
        if value:
            has_unit = column.unit and value[-1].isdigit()
            yield f"{column.name} {value}{f' {column.unit}' if has_unit else ''}"
