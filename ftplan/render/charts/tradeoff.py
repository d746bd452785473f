"""Speed against memory: every configuration that was looked at, the front of the best, and the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from ftplan.render.charts.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Svg, byte_scale, byte_ticks, ticks
from ftplan.render.console import size
from ftplan.render.estimates import summary
from ftplan.results import Placed, Point
from ftplan.spec import RunConfig

HEIGHT: Final = 320
FAR: Final = 1.5
"""Times the limit: what needs more is told, not drawn, lest the rest be squeezed."""
MARKS: Final = {
    "full": ("■", "full"),
    "lora": ("●", "LoRA"),
    "qlora": ("◆", "QLoRA"),
    "llama-adapter": ("▲", "LLaMA-Adapter"),
}
SHAPES: Final = {"full": "square", "lora": "circle", "qlora": "diamond", "llama-adapter": "triangle"}
LIMIT_LABEL: Final = 110
"""Room for it, left of its line."""


def by_speed(
    points: Sequence[Placed],
    front: Sequence[Point],
    chosen: RunConfig | None,
    limit_bytes: int,
    *,
    marked: Sequence[RunConfig] = (),
) -> str:
    """A mark for each of ``points`` by bytes and tokens per second; ``marked`` are ringed, ``chosen`` is a star."""
    kept = {chosen, *marked}
    near = drawn(points, limit_bytes, kept)
    fastest = max((one.tokens_per_second for one in near), default=1.0) or 1.0
    widest = max([*(one.needed_bytes for one in near), limit_bytes, 1]) * 1.04
    fits = sum(one.fits for one in points)
    told = f"{len(points)} configurations, {fits} of them fit; {len(points) - len(near)} need more than is drawn"
    svg = Svg("Speed against memory", told, HEIGHT, name="tradeoff")
    svg.root.set("data-points", str(len(points)))
    foot = HEIGHT - BOTTOM

    def x(value: float) -> float:
        return round(LEFT + value / widest * (WIDTH - LEFT - RIGHT), 2)

    def y(value: float) -> float:
        return round(foot - value / (fastest * 1.08) * (foot - TOP), 2)

    _axes(svg, x, y, limit_bytes, fastest * 1.08, widest)
    if len(front) > 1:
        path = " ".join(f"{x(one.needed_bytes)},{y(one.tokens_per_second)}" for one in front)
        svg.add(
            "polyline",
            points=path,
            class_="front",
            title="nothing that fits is both smaller and faster than one of these",
        )
    on_front = {one.config for one in front}
    for one in sorted(near, key=lambda one: (one.config == chosen, one.fits)):
        kind = (
            "chosen" if one.config == chosen else "marked" if one.config in marked else "fits" if one.fits else "short"
        )
        _mark(svg, one, x(one.needed_bytes), y(one.tokens_per_second), kind, on_front=one.config in on_front)
    return svg.text()


def _axes(
    svg: Svg, x: Callable[[float], float], y: Callable[[float], float], limit_bytes: int, fastest: float, widest: float
) -> None:
    foot = HEIGHT - BOTTOM
    for speed in ticks(fastest):
        svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(speed), y2=y(speed), class_="grid")
        svg.label(LEFT - 6, y(speed) + 4, _figure(speed), anchor="end", kind="tick")
    for held, text in byte_ticks(widest):
        svg.add("line", x1=x(held), x2=x(held), y1=TOP, y2=foot, class_="grid")
        svg.label(x(held), foot + 15, text, kind="tick")
    svg.label(1, TOP - 10, "tokens/s", anchor="start", kind="tick")
    unit = byte_scale(widest)[1]
    svg.label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 7, f"{unit} needed on the worst rank", kind="tick")
    svg.add("line", x1=x(limit_bytes), x2=x(limit_bytes), y1=TOP, y2=foot, class_="limit", data_limit_bytes=limit_bytes)
    before = x(limit_bytes) - LIMIT_LABEL > LEFT
    at, side = (x(limit_bytes) + 1, "end") if before else (x(limit_bytes), "start")
    svg.label(at, TOP - 6, f"limit {size(limit_bytes)}", anchor=side, kind="limit-label")


def drawn(points: Sequence[Placed], limit_bytes: int, kept: Collection[RunConfig | None] = ()) -> list[Placed]:
    """Those of ``points`` that are not far beyond the limit, or beyond those that are ``kept`` in any case."""
    reach = max([FAR * limit_bytes, *(one.needed_bytes for one in points if one.config in kept)])
    return [one for one in points if one.needed_bytes <= reach]


def _mark(svg: Svg, one: Placed, x: float, y: float, kind: str, *, on_front: bool) -> None:
    reason = "" if one.fits else f" ({one.reason})"
    told = f"{summary(one.config)}: {size(one.needed_bytes)}, {one.tokens_per_second:,.0f} tokens/s{reason}"
    radius = 8.0 if kind == "chosen" else 5.5 if on_front or kind == "marked" else 4.0
    svg.add(
        "path",
        title=told,
        d=_outline("star" if kind == "chosen" else SHAPES.get(one.config.method, "circle"), x, y, radius),
        class_=f"point {kind} method-{one.config.method}",
        data_needed_bytes=one.needed_bytes,
        data_tokens_per_second=repr(one.tokens_per_second),
        data_fits=str(one.fits).lower(),
        data_front=str(on_front).lower(),
    )


def _outline(shape: str, x: float, y: float, r: float) -> str:
    if shape == "square":
        return f"M{x - r:g} {y - r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z"
    if shape == "diamond":
        return f"M{x:g} {y - r * 1.25:g}L{x + r * 1.25:g} {y:g}L{x:g} {y + r * 1.25:g}L{x - r * 1.25:g} {y:g}z"
    if shape == "triangle":
        return f"M{x:g} {y - r * 1.2:g}L{x + r * 1.1:g} {y + r * 0.9:g}L{x - r * 1.1:g} {y + r * 0.9:g}z"
    if shape == "star":
        tips = ((0, -1), (0.25, -0.31), (0.95, -0.31), (0.38, 0.12), (0.59, 0.81))
        mirrored = [*tips, (0, 0.4), *((-dx, dy) for dx, dy in reversed(tips[1:]))]
        return "M" + "L".join(f"{x + dx * r:.2f} {y + dy * r:.2f}" for dx, dy in mirrored) + "z"
    return f"M{x - r:g} {y:g}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"


def _figure(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,g} M"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}"
