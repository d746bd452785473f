"""What a training process takes beside its tensors: the figures of ``data/runtime.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ftplan.profiles.packaged import packaged_json


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with the document or measurement it comes from."""

    value: float
    source: str


@cache
def runtime_figure(*path: str) -> Figure:
    """The figure at ``path`` in the data file; a path it does not hold is our own bug."""
    node = _document()
    for key in path:
        node = node[key]
    return Figure(float(node["value"]), str(node["source"]))


@cache
def _document() -> Mapping[str, Any]:
    document: Mapping[str, Any] = packaged_json("runtime.json")
    return document
