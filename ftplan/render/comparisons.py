"""Two plans side by side, as a piece of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from ftplan.render.console import count, duration, size
from ftplan.render.estimates import summary
from ftplan.render.pages import rendered, view
from ftplan.results import Estimate
from ftplan.workflows.picturing import Picture

FIGURES: Final[tuple[tuple[str, Callable[[Estimate], float], Callable[[Any], str]], ...]] = (
    ("needed on the worst rank", lambda told: told.needed_bytes, size),
    ("offered by its card", lambda told: told.capacity_bytes, size),
    ("peak allocated", lambda told: told.peak_allocated_bytes, size),
    ("host RAM of a node", lambda told: told.host.needed_bytes, size),
    ("one step", lambda told: told.step_seconds, duration),
    ("tokens/s", lambda told: told.tokens_per_second, lambda value: f"{value:,.0f}"),
    ("parameters that train", lambda told: told.trainable_params, count),
)


def comparison(left: Picture, right: Picture) -> str:
    """The figures and settings of two answers, and their memory by phase; both must have a configuration."""
    assert left.config is not None
    assert right.config is not None
    return rendered(
        "compare.html.j2",
        {},
        left={"title": _title(left), **view(left)},
        right={"title": _title(right), **view(right)},
        rows=list(_rows(left, right)),
        differences=_differences(left, right),
    )


def _title(picture: Picture) -> str:
    request = picture.document["request"]
    return f"{request['model']} on {request['inventory']['text']}"


def _rows(left: Picture, right: Picture) -> Iterator[dict[str, str]]:
    one, other = left.estimate, right.estimate
    assert left.config is not None
    assert right.config is not None
    assert one is not None
    assert other is not None
    yield {"name": "plan", "left": summary(left.config), "right": summary(right.config), "beside": ""}
    yield {"name": "verdict", "left": _fits(one), "right": _fits(other), "beside": ""}
    for name, of, show in FIGURES:
        a, b = of(one), of(other)
        yield {"name": name, "left": show(a), "right": show(b), "beside": _beside(a, b)}


def _beside(left: float, right: float) -> str:
    return "the same" if left == right else f"{right / left:.2f} times" if left else ""


def _fits(told: Estimate) -> str:
    return "fits" if told.fits else "does not fit"


def _differences(left: Picture, right: Picture) -> list[tuple[str, str, str]]:
    assert left.config is not None
    assert right.config is not None
    one, other = left.config.model_dump(), right.config.model_dump()
    asked = {name: (left.document["request"][name], right.document["request"][name]) for name in ("global_batch",)}
    found = {**asked, **{name: (one[name], other[name]) for name in one}}
    return [(name, _value(a), _value(b)) for name, (a, b) in found.items() if a != b]


def _value(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
