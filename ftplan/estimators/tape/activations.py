"""Activation functions as programs (transformers/activations.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.operations import FP32


def fused(tape: Tape, value: Tensor) -> Tensor:
    """One kernel that keeps its input: silu, gelu with or without the tanh approximation."""
    return ops.unary(tape, value)


def relu(tape: Tape, value: Tensor) -> Tensor:
    """One kernel that keeps its result."""
    return ops.unary(tape, value, saves=False, saves_output=True)


def written_out(tape: Tape, value: Tensor) -> Tensor:
    """NewGELUActivation: each operation for itself; ``pow`` computes in fp32 under autocast."""
    return ops.multiply(
        tape,
        ops.times_constant(tape, value),
        ops.constant_added(
            tape,
            ops.unary(
                tape,
                ops.times_constant(tape, ops.add(tape, value, ops.times_constant(tape, cube(tape, value)))),
                saves=False,
                saves_output=True,
            ),
        ),
    )


def cube(tape: Tape, value: Tensor) -> Tensor:
    """``pow(value, 3)``, in fp32 under autocast."""
    wide = ops.to(tape, value, FP32) if tape.autocast else value
    return tape.operation(
        (wide,), lambda gradient, _: ops.through(tape, gradient, 2), lambda: ops.like(tape, wide), saved=(wide,)
    )


def quick(tape: Tape, value: Tensor) -> Tensor:
    """``value * sigmoid(1.702 * value)``."""
    return ops.multiply(tape, value, ops.unary(tape, ops.times_constant(tape, value), saves=False, saves_output=True))


ACTIVATIONS: Final[Mapping[str, Callable[[Tape, Tensor], Tensor]]] = {
    "silu": fused,
    "swish": fused,
    "gelu": fused,
    "gelu_pytorch_tanh": fused,
    "relu": relu,
    "gelu_new": written_out,
    "gelu_fast": written_out,
    "quick_gelu": quick,
}
