"""Tables that stay readable: aligned where the window is wide enough, a few short lines a row where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from rich.table import Table
from rich.text import Text

from ftplan.render.console import bar, out, words

INDENT: Final = "  "
SEPARATOR: Final = Text(" · ")
GAP: Final = 2
LEAST_NAME: Final = 36
LEAST_TEXT: Final = 28
"""Characters below which a column that folds is no longer one: its rows become lines."""
LEAST_BAR: Final = 8
"""Characters below which a bar tells nothing, and is left out."""

Shown = Text | float
"""A float is the part, 0 to 1, that a bar shows."""
Cell = str | Shown


@dataclass(frozen=True)
class Column:
    """The head of a column. Names and texts fold, figures never do, and bars take what room is left.

    A short line says ``said`` of a figure, by default its head and the value; what follows the value there is its unit,
    which only a number has. ``width`` is that of a whole bar.
    """

    head: str = ""
    kind: Literal["name", "figure", "value", "text", "bar"] = "figure"
    said: str = ""
    width: int = 32

    @property
    def folds(self) -> bool:
        """Whether its cells may take several lines."""
        return self.kind in ("name", "text")

    def told(self, cell: Text) -> Text:
        """A cell as a short line has it."""
        before, _, after = (self.said or f"{self.head} {{}}").partition("{}")
        return Text.assemble(before.lstrip(), cell, after if cell.plain[-1:].isdigit() else "")


def print_table(
    columns: Sequence[Column], given: Sequence[Sequence[Cell]], *, styles: Sequence[str] = (), has_head: bool = True
) -> None:
    """Print the rows ``given``, each in its style, under ``columns`` where they fit the window, else as short lines."""
    rows = [[words(cell) if isinstance(cell, str) else cell for cell in row] for row in given]
    styles = styles or [""] * len(rows)
    shown, width = list(range(len(columns))), out().width
    widths = _widths(columns, rows, shown, width)
    if widths is None:
        shown = [place for place in shown if columns[place].kind != "bar"]
        widths = _widths(columns, rows, shown, width)
    if widths is None:
        _print_lines(columns, rows, styles, has_head=has_head)
        return
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=has_head)
    for place, size in zip(shown, widths, strict=True):
        right = columns[place].kind == "figure"
        table.add_column(columns[place].head, width=size, justify="right" if right else "left", overflow="fold")
    wholes = [
        _whole(columns[place], [row[place] for row in rows], size) for place, size in zip(shown, widths, strict=True)
    ]
    for row, style in zip(rows, styles, strict=True):
        cells = (_shown(row[place], whole) for place, whole in zip(shown, wholes, strict=True))
        names = [columns[place].kind == "name" for place in shown]
        table.add_row(*map(_hanging, cells, widths, names), style=style)
    out().print(table)


def print_folded(lines: Sequence[str | Text], *, indent: str = "", style: str = "") -> None:
    """Lines that may be long, all of each indented."""
    width = max(1, out().width - len(indent))
    for line in lines:
        text = words(line, style=style) if isinstance(line, str) else line
        for part in text.wrap(out(), width):
            part.rstrip()
            out().print(Text.assemble(indent, part))


def print_parts(text: Text, *, indent: str = "") -> None:
    """A line of figures, which breaks between them wherever one fits a line."""
    _print_packed(list(text.split(SEPARATOR.plain)), indent)


def _print_packed(parts: Sequence[Text], indent: str) -> None:
    """As many of ``parts`` on a line as fit it."""
    width = out().width - len(indent)
    line = Text()
    for part in parts:
        longer = SEPARATOR.join([line, part]) if line else part
        if len(longer) > width and line:
            print_folded([line], indent=indent)
            longer = part
        line = longer
    print_folded([line] if line else [], indent=indent)


def _hanging(cell: Text, width: int, is_name: bool) -> Text:
    """A name that takes several lines, all but the first indented, so that none looks like another row."""
    if not is_name or len(cell) <= width:
        return cell
    first, *others = cell.wrap(out(), width - len(INDENT))
    return Text("\n").join([first, *(Text.assemble(INDENT, line) for line in others)])


def _shown(cell: Shown, whole: int) -> Text:
    return Text(bar(cell, whole)) if isinstance(cell, float) else cell


def _highest(cells: Sequence[Shown]) -> float:
    return min(1.0, max((cell for cell in cells if isinstance(cell, float)), default=0.0))


def _whole(head: Column, cells: Sequence[Shown], width: int) -> int:
    """Characters of a whole bar where the highest of ``cells`` gets ``width`` at most."""
    highest = _highest(cells)
    return min(head.width, int(width / highest)) if highest else head.width


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[Shown]], shown: Sequence[int], window: int
) -> list[int] | None:
    """The width of each column that is ``shown``; None where one would be too narrow to read."""
    heads = [columns[place] for place in shown]
    cells = [[row[place] for row in rows] for place in shown]
    widths = [_natural(head, of_it) for head, of_it in zip(heads, cells, strict=True)]
    least = [_least(head, of_it, width) for head, of_it, width in zip(heads, cells, widths, strict=True)]
    room = window - GAP * (len(shown) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max((place for place in range(len(widths)) if widths[place] > least[place]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _natural(head: Column, cells: Sequence[Shown]) -> int:
    longest = max((len(line) for cell in cells if isinstance(cell, Text) for line in cell.plain.split("\n")), default=0)
    return max(len(head.head), ceil(_highest(cells) * head.width), longest)


def _least(head: Column, cells: Sequence[Shown], natural: int) -> int:
    if head.kind in ("figure", "value"):
        return natural
    floor = {"name": LEAST_NAME, "text": LEAST_TEXT, "bar": LEAST_BAR}[head.kind]
    texts = [head.head, *(cell.plain for cell in cells if isinstance(cell, Text))]
    longest = max((len(word) for text in texts for word in text.split()), default=0)
    return max(longest, min(natural, floor))


def _print_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Shown]], styles: Sequence[str], *, has_head: bool
) -> None:
    if has_head and columns[0].head and not columns[0].said:
        print_folded([words(columns[0].head, style="dim")])
    for row, style in zip(rows, styles, strict=True):
        figures = list(_figures(columns, row))
        name = row[0] if isinstance(row[0], Text) else Text()
        name = columns[0].told(name) if columns[0].said else name
        together = Text.assemble(name, ": " if figures else "", SEPARATOR.join(figures), style=style)
        if len(together) <= out().width:
            out().print(together)
        else:
            print_folded([Text.assemble(name, style=style)])
            _print_packed(figures, INDENT)
        print_folded(list(_texts(columns, row)), indent=INDENT)


def _figures(columns: Sequence[Column], row: Sequence[Shown]) -> Iterator[Text]:
    """The cells after the first that are short."""
    for column, cell in zip(columns[1:], row[1:], strict=True):
        if column.kind in ("figure", "value") and isinstance(cell, Text) and cell:
            yield column.told(cell)


def _texts(columns: Sequence[Column], row: Sequence[Shown]) -> Iterator[Text]:
    """The cells after the first that fold."""
    for column, cell in zip(columns[1:], row[1:], strict=True):
        if column.folds and isinstance(cell, Text) and cell:
            yield cell
