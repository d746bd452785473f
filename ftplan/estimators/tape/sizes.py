"""Sizes as functions of the micro-batch, and the events of a program: what is allocated and released, in order."""

from __future__ import annotations

from typing import Final, NamedTuple


class Size(NamedTuple):
    """Bytes or elements: for each token, score entry [B, S, S], mask entry [S, S] and position [S], and fixed ones."""

    tokens: float = 0.0
    scores: float = 0.0
    mask: float = 0.0
    length: float = 0.0
    fixed: float = 0.0

    def times(self, factor: float) -> Size:
        """``factor`` times as much."""
        tokens, scores, mask, length, fixed = self
        return Size(tokens * factor, scores * factor, mask * factor, length * factor, fixed * factor)

    def plus(self, other: Size) -> Size:
        """The sum."""
        return Size(self[0] + other[0], self[1] + other[1], self[2] + other[2], self[3] + other[3], self[4] + other[4])


NOTHING: Final = Size()


class Rule(NamedTuple):
    """Bytes that are no linear function of the micro-batch: the name of their rule in `kernels`, and its numbers."""

    name: str
    first: int
    second: int = 0


class Event(NamedTuple):
    """One allocation (``size`` is given) or release; ``rule`` adds bytes that are known only with the micro-batch."""

    key: int
    size: Size | None
    name: str
    place: int
    rule: Rule | None = None


class Mark(NamedTuple):
    """A phase begins, or the backward of a part of the model ends."""

    phase: str
    place: int = 0


LEFT: Final = "left"
WITH_BIAS: Final = "product with a bias"
PRODUCT: Final = "product"
"""A matrix product; ``place`` is 1 in the forward's thread and 2 in the backward's."""
COMPLETE: Final = "complete"
"""A weight's gradient is complete, in a program that reduces tensor by tensor; ``place`` is its elements."""
GRADIENTS: Final = "gradients"
IN_FLIGHT: Final = "gradients being reduced"
SCRATCH: Final = "scratch"
RECOMPUTED: Final = "recomputed layer"
BACKWARD: Final = "layer backward"
