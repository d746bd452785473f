"""Memory as charts: by phase against the limit, by term at the peak, by rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Final

from ftplan.render.charts.bars import Row, bars
from ftplan.render.charts.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Svg, byte_ticks, kind_of
from ftplan.render.console import size
from ftplan.results import Phase, RankEstimate, Term

HEIGHT: Final = 290
MOST_ROWS: Final = 14
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
) -> str:
    """Columns of what is alive in each phase, with the limit across them.

    ``tops`` say what a phase needs in all: what that is more than its terms is drawn above them.
    """
    stacks = {phase: _stack(terms, phase) for phase in Phase}
    for phase, stack in stacks.items():
        if (outside := tops.get(phase, 0) - sum(stack.values())) > 0:
            stack["outside tensors"] = outside
    totals = {phase: sum(stack.values()) for phase, stack in stacks.items()}
    highest = max(*totals.values(), limit_bytes)
    peak = max(totals, key=totals.__getitem__)
    told = f"highest in {peak} with {size(totals[peak])}, {limit} {size(limit_bytes)}"
    svg = Svg(title, told, HEIGHT, name=name)
    foot, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def y(value: float) -> float:
        return foot - value / (highest * 1.06) * room

    for value, text in byte_ticks(highest * 1.06):
        svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid")
        svg.label(LEFT - 6, y(value) + 4, text, anchor="end", kind="tick")
    step = (WIDTH - LEFT - RIGHT) / len(Phase)
    for index, (phase, stack) in enumerate(stacks.items()):
        x, width = LEFT + (index + GAP / 2) * step, (1 - GAP) * step
        below = 0
        for term, held in stack.items():
            svg.add(
                "rect",
                title=f"{phase}: {term} {size(held)}",
                x=round(x, 2),
                y=round(y(below + held), 2),
                width=round(width, 2),
                height=round(max(0.0, y(below) - y(below + held)), 2),
                class_=f"term kind-{kind_of(term)}",
                data_phase=phase,
                data_term=term,
                data_bytes=held,
            )
            below += held
        kind = "label strong" if phase == peak else "label"
        svg.label(x + width / 2, foot + 16, str(phase), kind=f"phase {kind}")
        svg.label(x + width / 2, y(below) - 4, _short(totals[phase]), kind="value strong" if phase == peak else "value")
    line = y(limit_bytes)
    svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=line, y2=line, class_="limit", data_limit_bytes=limit_bytes)
    svg.label(
        WIDTH - RIGHT,
        line - 4 if line > TOP + 8 else line + 13,
        f"{limit} {size(limit_bytes)}",
        anchor="end",
        kind="limit-label",
    )
    return svg.text()


def _stack(terms: Iterable[Term], phase: Phase) -> dict[str, int]:
    """Bytes of each term by name in ``phase``: what lives longest at the foot."""
    alive = sorted((term for term in terms if phase in term.alive), key=lambda term: (-len(term.alive), -term.bytes))
    found: dict[str, int] = {}
    for term in alive:
        found[term.name] = found.get(term.name, 0) + term.bytes
    return found


def _short(held: int) -> str:
    """A size without its unit where that is GiB, which the axis tells."""
    return size(held).removesuffix(" GiB")


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
