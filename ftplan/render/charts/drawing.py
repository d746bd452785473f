"""What the charts share: SVG elements, round axis ticks, the kinds that colours stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

from ftplan.units import GIB, MIB

WIDTH: Final = 480
"""User units of every chart, so that its text is readable on a phone, where it is scaled down little."""
LEFT: Final = 56
RIGHT: Final = 14
TOP: Final = 26
BOTTOM: Final = 40

KINDS: Final[dict[str, str]] = {
    term: kind
    for kind, terms in {
        "weights": (
            "weights",
            "weight copies",
            "before sharding",
            "quantization",
            "loading",
            "pinned weights and gradients",
        ),
        "adapters": ("adapters",),
        "gradients": ("gradients", "accumulated gradients"),
        "optimizer": (
            "optimizer states",
            "optimizer temporaries",
            "master weights",
            "host optimizer",
            "offloaded states",
        ),
        "activations": (
            "input",
            "layer outputs",
            "norms",
            "attention",
            "mlp",
            "recomputed layer",
            "recomputation",
            "layer backward",
            "activation gradients",
            "evaluation",
        ),
        "loss": ("logits and loss",),
        "communication": (
            "gathered parameters",
            "gradients being reduced",
            "gradients to the host",
            "weights in transit",
            "communication",
            "buckets",
            "zero buffers",
            "pinned",
            "saving",
        ),
        "other": ("scratch", "workspace"),
        "outside": (
            "outside tensors",
            "allocator rounding",
            "recorded excess",
            "context",
            "NCCL",
            "FSDP2",
            "DeepSpeed",
            "paging",
            "processes",
            "training",
        ),
    }.items()
    for term in terms
}
"""The kind of memory that each term of an estimate is of; parts of a trace are told by how their names begin."""
ACTIVATIONS: Final = "activations: "
OFFLOADED: Final = "offloaded "


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
                "data-name": clean(name),
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
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def kind_of(term: str) -> str:
    """The kind of memory that a term is of, which gives it its colour."""
    if term.startswith(ACTIVATIONS):
        return "activations"
    return KINDS.get(term) or KINDS.get(term.removeprefix(OFFLOADED), "other")


def ticks(highest: float, most: int = 5) -> list[float]:
    """Round values from 0 to at most ``highest``, no more than ``most`` above 0."""
    if not 1e-300 < highest < math.inf:
        return [0.0]
    rough = highest / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.floor(highest / step * (1 + 1e-9)) + 1)]


def byte_scale(highest: float) -> tuple[int, str]:
    """The unit that sizes up to ``highest`` are shown in: its bytes and name."""
    return (GIB, "GiB") if highest >= GIB / 10 else (MIB, "MiB")


def byte_ticks(highest: float) -> Iterator[tuple[float, str]]:
    """Ticks of an axis of bytes up to ``highest``, with their labels in the unit that suits it."""
    unit, _ = byte_scale(highest)
    for value in ticks(highest / unit):
        yield value * unit, f"{value:,g}"
