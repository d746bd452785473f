"""Horizontal bars with names and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ftplan.render.charts.drawing import WIDTH, Svg, clean

ROW: Final = 22
NAME: Final = 172
"""Room for a name, left of its bar."""
FIGURE: Final = 84
FRAMED: Final = 172
"""Room for a figure, right of it: alone, and with what it is a part of."""
MOST_LETTERS: Final = 23


@dataclass(frozen=True)
class Row:
    """A bar: its name, length, figure in words, class, data; ``frame`` is the length of what it is a part of."""

    name: str
    length: float
    figure: str
    kind: str
    data: Mapping[str, object] = field(default_factory=dict)
    frame: float = 0.0


def bars(rows: Sequence[Row], title: str, description: str, *, name: str) -> str:
    """A line for each of ``rows``, on one scale."""
    svg = Svg(title, description, 8.0 + ROW * max(1, len(rows)), name=name)
    longest = max((max(row.length, row.frame) for row in rows), default=0) or 1.0
    room = WIDTH - NAME - (FRAMED if any(row.frame for row in rows) else FIGURE)
    for index, row in enumerate(rows):
        top = 4 + index * ROW
        full = f"{row.name}: {row.figure}"
        svg.label(NAME - 8, top + 15, _cut(row.name), anchor="end", kind="name")
        y, height = top + 3, ROW - 7
        width = round(max(1.0, row.length / longest * room), 2)
        bar = svg.add("rect", title=full, x=NAME, y=y, height=height, width=width, class_=f"term {row.kind}")
        bar.attrib.update({name: clean(str(value)) for name, value in row.data.items()})
        if row.frame:
            framed = round(row.frame / longest * room, 2)
            svg.add("rect", x=NAME, y=y, height=height, width=framed, class_="frame")
        past = NAME + max(width, row.frame / longest * room) + 6
        svg.label(past, top + 15, row.figure, anchor="start", kind="value")
    return svg.text()


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
