"""What a training process takes beside its tensors: the figures of ``data/runtime.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


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
        assert isinstance(node, dict)
        node = node[key]
    assert isinstance(node, dict)
    return Figure(float(node["value"]), str(node["source"]))


@cache
def _document() -> dict[str, object]:
    document = json.loads(files("ftplan.profiles").joinpath("data/runtime.json").read_text("utf-8"))
    assert isinstance(document, dict)
    return document
