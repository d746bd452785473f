"""Charts taken apart, and what every chart must hold to."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def parsed(svg: str) -> ET.Element:
    root = ET.fromstring(svg)  # noqa: S314 - our own
    for element in root.iter():
        element.tag = element.tag.removeprefix("{http://www.w3.org/2000/svg}")
    return root


def marks(root: ET.Element, attribute: str) -> list[ET.Element]:
    return [element for element in root.iter() if attribute in element.attrib]


def classed(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def check_inside(root: ET.Element) -> None:
    """Every shape, and the point where every text begins or ends, is within the image; no figure is NaN."""
    _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
    for element in root.iter():
        for x, y in _corners(element):
            assert math.isfinite(x)
            assert math.isfinite(y)
            assert -0.01 <= x <= width + 0.01, ET.tostring(element)
            assert -0.01 <= y <= height + 0.01, ET.tostring(element)


def _corners(element: ET.Element) -> list[tuple[float, float]]:
    get = {name: float(value) for name, value in element.attrib.items() if name in _PLACES}
    if element.tag == "rect":
        assert get["width"] >= 0
        assert get["height"] >= 0
        return [(get["x"], get["y"]), (get["x"] + get["width"], get["y"] + get["height"])]
    if element.tag == "line":
        return [(get["x1"], get["y1"]), (get["x2"], get["y2"])]
    if element.tag == "text":
        return [(get["x"], get["y"])]
    if element.tag == "circle":
        return [(get["cx"], get["cy"])]
    if element.tag == "polyline":
        return [tuple(map(float, pair.split(","))) for pair in element.attrib["points"].split()]  # type: ignore[misc]
    if element.tag == "path":
        x, y = NUMBER.findall(element.attrib["d"])[:2]
        return [(float(x), float(y))]
    return []


_PLACES = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"}
