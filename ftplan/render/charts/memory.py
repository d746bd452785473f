"""Memory as charts: by phase against the limit, by term at the peak, by rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Final

from ftplan.render.charts.bars import Row, bars
from ftplan.render.charts.drawing import LEFT, RIGHT, TOP, WIDTH, Svg, byte_scale, byte_ticks, kind_of
from ftplan.render.console import size
from ftplan.results import Phase, RankEstimate, Term

HEIGHT: Final = 290
LOW: Final = 210
"""Of a chart that tells less."""
BELOW: Final = 34
"""Room for the names of the phases: two lines of them on a phone."""
MOST_ROWS: Final = 14
PHASES: Final = tuple(Phase)
STEP: Final = (WIDTH - LEFT - RIGHT) / len(PHASES)
CLEAR: Final = 14
"""Between two lines of text."""
GAP: Final = 0.28
"""Of a column's place that is left empty."""


def by_phase(
    terms: Sequence[Term],
    limit_bytes: int,
    *,
    tops: Mapping[Phase, int] = MappingProxyType({}),
    title: str = "Memory by phase",
    limit: str = "limit",
    name: str = "timeline",
    height: float = HEIGHT,
) -> str:
    """Columns of what is alive in each phase, with the limit across them.

    ``tops`` say what a phase needs in all: what that is more than its terms is drawn above them.
    """
    stacks = {phase: _stack(terms, phase) for phase in Phase}
    for phase, stack in stacks.items():
        if (outside := tops.get(phase, 0) - sum(stack.values())) > 0:
            stack["outside tensors"] = outside
    totals = {phase: sum(stack.values()) for phase, stack in stacks.items()}
    peak = max(totals, key=totals.__getitem__)
    told = f"highest in {peak} with {size(totals[peak])}, {limit} {size(limit_bytes)}"
    drawn = _Columns(Svg(title, told, height, name=name), max(*totals.values(), limit_bytes, 1) * 1.06)
    drawn.axis()
    for phase, stack in stacks.items():
        drawn.column(phase, stack)
    drawn.limit(limit_bytes)
    for phase, total in totals.items():
        drawn.labels(phase, total, strong=phase == peak)
    drawn.limit_label(f"{limit} {size(limit_bytes)}", limit_bytes, list(totals.values()))
    return drawn.svg.text()


@dataclass(frozen=True)
class _Columns:
    """Columns for the phases, on a scale that ends at ``highest`` bytes."""

    svg: Svg
    highest: float

    @property
    def foot(self) -> float:
        return self.svg.height - BELOW

    def x(self, phase: Phase) -> float:
        return LEFT + (PHASES.index(phase) + GAP / 2) * STEP

    def y(self, value: float) -> float:
        return round(self.foot - value / self.highest * (self.foot - TOP), 2)

    def axis(self) -> None:
        self.svg.label(1, TOP - 10, byte_scale(self.highest)[1], anchor="start", kind="tick")
        for value, text in byte_ticks(self.highest):
            self.svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value), class_="grid")
            self.svg.label(LEFT - 6, self.y(value) + 4, text, anchor="end", kind="tick")

    def column(self, phase: Phase, stack: Mapping[str, int]) -> None:
        below = 0
        for term, held in stack.items():
            self.svg.add(
                "rect",
                title=f"{phase}: {term} {size(held)}",
                x=round(self.x(phase), 2),
                y=self.y(below + held),
                width=round((1 - GAP) * STEP, 2),
                height=round(max(0.0, self.y(below) - self.y(below + held)), 2),
                class_=f"term kind-{kind_of(term)}",
                data_phase=phase,
                data_term=term,
                data_bytes=held,
            )
            below += held

    def labels(self, phase: Phase, total: int, *, strong: bool) -> None:
        middle, more = self.x(phase) + (1 - GAP) / 2 * STEP, " strong" if strong else ""
        lower = " lower" if PHASES.index(phase) % 2 else ""
        self.svg.label(middle, self.foot + 15, str(phase), kind=f"phase{lower}{more}")
        unit = byte_scale(self.highest)[1]
        self.svg.label(middle, self.y(total) - 4, size(total).removesuffix(f" {unit}"), kind=f"value{more}")

    def limit(self, limit_bytes: int) -> None:
        y = self.y(limit_bytes)
        self.svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="limit", data_limit_bytes=limit_bytes)

    def limit_label(self, text: str, limit_bytes: int, totals: Sequence[int]) -> None:
        """Where the columns' own figures leave room: at either end, above the line or below it."""
        line = self.y(limit_bytes)
        places = [
            (clear, side, y)
            for side, columns in (("end", totals[-3:]), ("start", totals[:3]))
            for y in (line - 5, line + 12)
            if TOP - 12 < y < self.foot
            for clear in [min(abs(self.y(total) - 4 - y) for total in columns)]
        ]
        _, side, y = max(places, key=lambda place: min(place[0], CLEAR))
        self.svg.label(WIDTH - RIGHT if side == "end" else LEFT + 2, y, text, anchor=side, kind="limit-label")


def _stack(terms: Iterable[Term], phase: Phase) -> dict[str, int]:
    """Bytes of each term by name in ``phase``: what lives longest at the foot."""
    alive = sorted((term for term in terms if phase in term.alive), key=lambda term: (-len(term.alive), -term.bytes))
    found: dict[str, int] = {}
    for term in alive:
        found[term.name] = found.get(term.name, 0) + term.bytes
    return found


def by_term(terms: Sequence[Term], phase: Phase) -> str:
    """A bar for each term alive in ``phase``, largest first."""
    held = sorted(_stack(terms, phase).items(), key=lambda pair: -pair[1])
    shown, rest = held[:MOST_ROWS], held[MOST_ROWS:]
    if rest:
        shown.append((f"{len(rest)} smaller terms", sum(each for _, each in rest)))
    rows = [
        Row(term, each, size(each), f"kind-{kind_of(term)}", {"data-term": term, "data-bytes": each})
        for term, each in shown
    ]
    told = ", ".join(f"{term} {size(each)}" for term, each in shown[:3])
    return bars(rows, f"Memory by term in phase {phase}", told, name="terms")


def by_rank(ranks: Sequence[RankEstimate]) -> str:
    """What each rank needs, of what its card offers; neighbours that are alike share a bar."""
    rows: list[Row] = []
    alike = groupby(ranks, key=lambda rank: (rank.device, rank.needed_bytes, rank.capacity_bytes, rank.fits))
    for (device, needed, capacity, fits), same in alike:
        numbers = [rank.rank for rank in same]
        which = f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers[0]} to {numbers[-1]}"
        figure = f"{size(needed)} of {size(capacity)}"
        data = {"data-rank": numbers[0], "data-needed-bytes": needed, "data-capacity-bytes": capacity}
        kind = "kind-fits" if fits else "kind-short"
        rows.append(Row(f"{which}, {device}", needed, figure, kind, data, frame=capacity))
    told = f"{len(ranks)} ranks" + (f", the first {MOST_ROWS} kinds of them" if len(rows) > MOST_ROWS else "")
    return bars(rows[:MOST_ROWS], "Memory by rank, needed of what the card offers", told, name="ranks")
