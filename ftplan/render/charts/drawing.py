"""What the charts share: SVG elements, round axis ticks, the kinds that colours stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

from ftplan.units import GIB, MIB

WIDTH: Final = 480
"""User units of every chart, so that its text is readable on a phone, where it is scaled down little."""
LEFT: Final = 52
RIGHT: Final = 14
TOP: Final = 26
BOTTOM: Final = 40

KINDS: Final[dict[str, str]] = {
    "weights": "weights",
    "weight copies": "weights",
    "gathered parameters": "communication",
    "communication": "communication",
    "buckets": "communication",
    "adapters": "adapters",
    "gradients": "gradients",
    "accumulated gradients": "gradients",
    "optimizer states": "optimizer",
    "optimizer temporaries": "optimizer",
    "offloaded states": "optimizer",
    "logits and loss": "loss",
    "scratch": "other",
    "workspace": "other",
    "processes": "other",
    "recorded excess": "other",
    "training": "adapters",
    "loading": "weights",
    "saving": "loss",
    "context": "outside",
    "outside tensors": "outside",
}
"""Terms by the kind that colours them; the others are activations."""


class Svg:
    """An SVG image with a title and a description for those who cannot see it."""

    def __init__(self, title: str, description: str, height: float, *, name: str, width: float = WIDTH) -> None:
        self.width, self.height = width, height
        self.root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width:g} {height:g}",
                "role": "img",
                "class": "chart",
                "data-name": name,
                "aria-label": clean(f"{title}. {description}"),
            },
        )

    def add(
        self, tag: str, text: str = "", *, title: str = "", to: ET.Element | None = None, **values: object
    ) -> ET.Element:
        """An element; ``values`` are its attributes, with ``_`` for ``-``. ``title`` is shown on hovering it."""
        attributes = {
            name.rstrip("_").replace("_", "-"): f"{value:g}" if isinstance(value, float) else clean(str(value))
            for name, value in values.items()
        }
        made = ET.SubElement(self.root if to is None else to, tag, attributes)
        made.text = clean(text) or None
        if title:
            ET.SubElement(made, "title").text = clean(title)
        return made

    def label(self, x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "label") -> ET.Element:
        """A line of text whose baseline is at ``y``."""
        return self.add("text", text, x=round(x, 2), y=round(y, 2), text_anchor=anchor, class_=kind)

    def text(self) -> str:
        """The image, to stand in a page."""
        return ET.tostring(self.root, encoding="unicode")


def clean(text: str) -> str:
    """``text`` without the characters that XML cannot hold; those that people cannot see are spelled out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def kind_of(term: str) -> str:
    """The kind of memory that a term is of, which gives it its colour."""
    return KINDS.get(term, "activations")


def ticks(highest: float, most: int = 5) -> list[float]:
    """Round values from 0 to at most ``highest``, no more than ``most`` above 0."""
    if not highest > 0 or not math.isfinite(highest):
        return [0.0]
    rough = highest / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.floor(highest / step * (1 + 1e-9)) + 1)]


def byte_scale(highest: float) -> tuple[float, str]:
    """The unit that suits sizes up to ``highest``: its bytes and name."""
    return (GIB, "GiB") if highest >= GIB / 2 else (MIB, "MiB")


def byte_ticks(highest: float) -> Iterator[tuple[float, str]]:
    """Ticks of an axis of bytes up to ``highest``, with their labels."""
    unit, name = byte_scale(highest)
    for value in ticks(highest / unit):
        yield value * unit, f"{value:g} {name}"
