"""Figures of a run over its steps, as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from ftplan.render.charts.drawing import LEFT, RIGHT, WIDTH, Svg

HEIGHT: Final = 190
TOP: Final = 24
BOTTOM: Final = 30
MOST_POINTS: Final = 600
"""More than a chart has pixels for; of more, every n-th is drawn and the last."""


def line(name: str, steps: Sequence[int], values: Sequence[float], *, total_steps: int | None = None) -> str:
    """``values`` over ``steps``; what is not finite breaks the line. The axis ends at ``total_steps`` where known."""
    pairs = _thinned(list(zip(steps, values, strict=True)))
    finite = [value for _, value in pairs if math.isfinite(value)]
    told = (
        f"{figure(values[0])} at step {steps[0]}, {figure(values[-1])} at step {steps[-1]}" if values else "nothing yet"
    )
    svg = Svg(name, told, HEIGHT, name=name.replace(" ", "-").replace("/", "-per-"))
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high == low:
        low, high = low - (abs(low) / 10 or 0.1), high + (abs(high) / 10 or 0.1)
    last = max(total_steps or 0, steps[-1] if steps else 1, 1)

    def x(step: float) -> float:
        return round(LEFT + step / last * (WIDTH - LEFT - RIGHT), 2)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid")
        svg.label(LEFT - 6, y(value) + 4, figure(value), anchor="end", kind="tick")
        svg.label(x(part * last), HEIGHT - BOTTOM + 16, f"{round(part * last)}", kind="tick")
    for piece in _pieces(pairs):
        points = " ".join(f"{x(step)},{y(value)}" for step, value in piece)
        svg.add("polyline", points=points, class_="curve")
    if pairs and math.isfinite(pairs[-1][1]):
        step, value = pairs[-1]
        svg.add("circle", cx=x(step), cy=y(value), r=3.5, class_="curve-end", data_step=step, data_value=repr(value))
        svg.label(WIDTH - RIGHT, 14, f"{figure(value)} at step {step}", anchor="end", kind="value")
    return svg.text()


def _thinned(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(pairs) <= MOST_POINTS:
        return pairs
    stride = math.ceil(len(pairs) / MOST_POINTS)
    return [*pairs[:-1:stride], pairs[-1]]


def _pieces(pairs: Sequence[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = [[]]
    for pair in pairs:
        if math.isfinite(pair[1]):
            found[-1].append(pair)
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def figure(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
