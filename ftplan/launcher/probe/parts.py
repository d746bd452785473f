"""What the probe measures, in its order, with the seconds that each may take; light, because the launcher asks too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SINGLE: Final[Mapping[str, float]] = {
    "context": 45.0,  # with the start of Python and the import of torch, or of all training libraries on a CPU
    "matrix rate": 20.0,
    "memory bandwidth": 15.0,
    "host link": 15.0,
    "launch time": 15.0,
}
GROUP: Final[Mapping[str, float]] = {"communicators": 45.0, "device link": 30.0}

GPUS_ONLY: Final = frozenset({"host link", "communicators"})


def parts_for(kind: str, *, grouped: bool = False) -> dict[str, float]:
    """The parts of one device or of a group; ``kind`` is cuda or cpu."""
    parts = GROUP if grouped else SINGLE
    return {name: limit for name, limit in parts.items() if kind == "cuda" or name not in GPUS_ONLY}
