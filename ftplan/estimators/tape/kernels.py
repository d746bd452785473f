"""Memory that CUDA kernels take while they run, as functions of sizes; `trace.kernels` has the same for tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ftplan.estimators.reductions import reduction_scratch
from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.operations import FP32, like
from ftplan.estimators.tape.sizes import Rule, Size
from ftplan.units import ceil_div

WIDEST_FUSED_HEAD = 256


@dataclass(frozen=True)
class Heads:
    """Shapes of one attention."""

    query: int
    key_value: int
    width: int
    value_width: int

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one of keys and values."""
        return self.key_value != self.query

    @property
    def ungrouped(self) -> Heads:
        """The same with keys and values for every query head."""
        return Heads(self.query, self.query, self.width, self.value_width)


def cudnn_attention(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, mask: Tensor | None
) -> Tensor:
    """cuDNN's fused attention: saves query, key, value, result and the scores' log-sums.

    Its backward's workspace is the query's gradient and row sums in fp32, and where heads are grouped keys' and values'
    gradients by query head.
    """
    element = query.element
    out = tape.empty(Size(tokens=heads.query * heads.value_width), element, head_major=query.head_major)
    sums = tape.empty(Size(tokens=heads.query), FP32)

    def backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Tensor) -> tuple[Tensor, ...]:
        gradients = like(tape, query), like(tape, key), like(tape, value)
        size = FP32 * heads.query * (heads.width + 1)
        if heads.grouped:
            size += 2 * element * heads.query * heads.width
        tape.scratch(Size(tokens=size, fixed=256))
        return gradients

    saved = [query, key, value, sums] if mask is None else [query, key, value, mask, sums]
    return tape.operation((query, key, value), backward, lambda: out, saved=saved, saves_output=True)


def efficient_attention(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, mask: Tensor | None
) -> Tensor:
    """The memory-efficient kernel: its backward holds row sums, and for halves the query's gradient, in fp32."""
    element = query.element
    out = tape.empty(Size(tokens=heads.query * heads.value_width), element)
    sums = tape.empty(Size(tokens=heads.query), FP32)
    wide = heads.width if element < FP32 else 0

    def backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Tensor) -> tuple[Tensor, ...]:
        gradients = like(tape, query), like(tape, key), like(tape, value)
        tape.scratch(Size(tokens=FP32 * heads.query * (wide + 1)))
        return gradients

    saved = [query, key, value, sums] if mask is None else [query, key, value, mask, sums]
    return tape.operation((query, key, value), backward, lambda: out, saved=saved, saves_output=True)


def plain_attention(tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
    """Matrix products with materialised scores (attention.cpp, _scaled_dot_product_attention_math).

    Half precision is computed in fp32; fewer heads of keys and values are expanded by the products.
    """
    before = query.element
    wide_query, wide_key, wide_value = (ops.to(tape, each, FP32) for each in (query, key, value))
    scaled = ops.times_constant(tape, wide_query)
    scores = ops.product(
        tape,
        ops.by_heads(tape, scaled, copies=True),
        expanded(tape, ops.times_constant(tape, wide_key), Size(tokens=heads.query * heads.width)),
        Size(scores=heads.query),
    )
    scores = ops.constant_added(tape, scores)
    scores = ops.softmax(tape, scores, FP32, safe=True)
    returned = tape.empty(scores.size, before)
    out = ops.product(
        tape,
        scores,
        expanded(tape, wide_value, Size(tokens=heads.query * heads.value_width)),
        Size(tokens=heads.query * heads.value_width),
    )
    out = ops.to(tape, ops.from_heads(tape, out, copies=True), before)
    del returned
    return out


def expanded(tape: Tape, value: Tensor, size: Size) -> Tensor:
    """One head for every query head, copied for a batched product."""
    if value.size == size:
        return ops.by_heads(tape, value, copies=True)
    return ops.repeat(tape, value, size)


def flash_attention(tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
    """FlashAttention 2: its backward holds the query's gradient and row sums in fp32, and expands grouped heads."""
    element = query.element
    out = tape.empty(Size(tokens=heads.query * heads.value_width), element, head_major=query.head_major)
    sums = tape.empty(Size(tokens=heads.query), FP32)
    rounded = -(-heads.width // 32) * 32

    def backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Tensor) -> tuple[Tensor, ...]:
        gradients = like(tape, query), like(tape, key), like(tape, value)
        size = FP32 * heads.query * (rounded + 1)
        if heads.grouped:
            size += 2 * element * heads.query * rounded
        tape.scratch(Size(tokens=size))
        return gradients

    return tape.operation(
        (query, key, value), backward, lambda: out, saved=(query, key, value, sums), saves_output=True
    )


def rule_bytes(rule: Rule, tokens: int) -> int:
    """Bytes of what is no linear function of the tokens."""
    return _RULES[rule.name](rule, tokens)


def _sum(rule: Rule, rows: int) -> int:
    return sum(reduction_scratch(rows, rule.first, rule.second))


def _embedding(rule: Rule, tokens: int) -> int:
    """Sorted ids and fp32 partial sums of rows, for more than 3072 ids (ATen/native/cuda/Embedding.cu)."""
    if tokens <= 3072:
        return 0
    segments = min(tokens, rule.first)
    partial = tokens // 10 + segments
    return 8 * (3 * tokens + 2 * segments + partial) + FP32 * partial * rule.second


def _tile(rule: Rule, tokens: int) -> int:
    """TRL's tile of logits (trl 1.16, kernels/chunked_logprob.py)."""
    return min(tokens, 4096) * 32768 * rule.first


def _liger(rule: Rule, tokens: int) -> int:
    """A chunk of logits [rows, V] in 16 bit; rows: nextpow2(ceil(T / ceil(V / H)))."""
    rows = ceil_div(tokens, ceil_div(rule.first, rule.second))
    return min(1 << (rows - 1).bit_length(), tokens) * rule.first * 2


_RULES: dict[str, Callable[[Rule, int], int]] = {"sum": _sum, "embedding": _embedding, "tile": _tile, "liger": _liger}
