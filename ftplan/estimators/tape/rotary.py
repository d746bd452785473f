"""Rotary positions as transformers computes them: by rotated halves, half by half, or in place."""

from __future__ import annotations

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.machine import Tape


def rotary(tape: Tape, value: Tensor, tables: int = 0) -> Tensor:
    """``value * cos + rotate_half(value) * sin``; ``tables`` in wider elements, the stream's, widen the result."""
    return ops.add(
        tape,
        ops.times_constant(tape, value, tables),
        ops.times_constant(tape, rotate_half(tape, value), tables),
    )


def rotary_in_place(tape: Tape, value: Tensor) -> Tensor:
    """Liger's kernel, in place on rows of tokens; what lies by heads is copied first, as is its gradient."""
    if not value.head_major:
        return ops.passed(tape, value)
    return ops.copied(tape, value)


def rotate_half(tape: Tape, value: Tensor) -> Tensor:
    """The halves of each head exchanged, the second negated."""
    half = value.size.times(0.5)
    first = ops.part(tape, value, half)
    second = ops.part(tape, value, half)
    return ops.join(tape, (ops.unary(tape, second, saves=False), first))


def rotary_by_halves(tape: Tape, value: Tensor) -> Tensor:
    """Each half times cos and sin, subtracted and added, and joined."""
    half = value.size.times(0.5)
    first, second = ops.split(tape, value, (half, half), head_major=True)
    return ops.join(tape, turned(tape, first, second))


def turned(tape: Tape, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """``first * cos - second * sin`` and ``second * cos + first * sin``."""
    one = subtract(tape, ops.times_constant(tape, first), ops.times_constant(tape, second))
    other = ops.add(tape, ops.times_constant(tape, second), ops.times_constant(tape, first))
    return one, other


def subtract(tape: Tape, first: Tensor, second: Tensor) -> Tensor:
    """Their difference; the second's gradient is negated."""
    return tape.operation(
        (first, second), lambda gradient: (gradient, ops.like(tape, gradient)), lambda: ops.like(tape, first)
    )
