"""Curves in text: a line of blocks of eight heights, or a plot of several lines with its range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final

BLOCKS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """``values`` in at most ``width`` characters; several that share one are its mean, what is not finite a space."""
    columns = _columns(values, width)
    low, high = _range(columns)
    return "".join(
        " " if not math.isfinite(value) else BLOCKS[_level(value, low, high, len(BLOCKS))] for value in columns
    )


def plot(values: Sequence[float], width: int, height: int) -> list[str]:
    """``values`` as ``height`` lines of at most ``width`` characters, the highest first."""
    columns = _columns(values, width)
    low, high = _range(columns)
    steps = len(BLOCKS)
    levels = [_level(value, low, high, height * steps) if math.isfinite(value) else -1 for value in columns]
    return ["".join(_cell(level - line * steps) for level in levels).rstrip() for line in reversed(range(height))]


def _cell(level: int) -> str:
    """The block of one line, where the curve ends ``level`` eighths above its foot."""
    return " " if level < 0 else BLOCKS[min(level, len(BLOCKS) - 1)]


def _columns(values: Sequence[float], width: int) -> list[float]:
    """``values``, or the means of ``width`` equal parts of them."""
    if len(values) <= width:
        return list(values)
    bounds = [round(index * len(values) / width) for index in range(width + 1)]
    return [fmean(values[begin:end]) for begin, end in pairwise(bounds)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def _level(value: float, low: float, high: float, levels: int) -> int:
    """Which of ``levels`` ``value`` is on; one in the middle where all values are one."""
    if high == low:
        return (levels - 1) // 2
    return min(levels - 1, int((value - low) / (high - low) * levels))
