"""Layers of the families of Llama's kind that differ from it: transcriptions of transformers' modelling code."""

from __future__ import annotations

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.layer import Layer, Parallel, PartlyRotary
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Projection
from ftplan.estimators.tape.rotary import rotary, rotary_by_halves, turned
from ftplan.estimators.tape.sizes import Size


class FourNorms(Layer):
    """Gemma 2 and 3: a norm before and after each block; the heads' norms after they are split."""

    def projected(self, tape: Tape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads."""
        query = ops.as_heads(tape, self.of_attention[0](tape, hidden))
        key = ops.as_heads(tape, self.of_attention[1](tape, hidden))
        value = ops.as_heads(tape, self.of_attention[2](tape, hidden))
        query_norm, key_norm = self.norms.get("q_norm"), self.norms.get("k_norm")
        if query_norm is not None and key_norm is not None:
            if self.options.liger:  # its kernels take contiguous rows
                query, key = ops.by_heads(tape, query, copies=True), ops.by_heads(tape, key, copies=True)
            query = query_norm(tape, query)
            key = key_norm(tape, key)
        return query, key, value

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        residual = hidden
        hidden = self.normed(tape, 0, hidden)
        hidden = self.attention(tape, hidden)
        hidden = self.normed(tape, 1, hidden)
        hidden = ops.add(tape, residual, hidden)
        residual = hidden
        hidden = self.normed(tape, 2, hidden)
        hidden = self.mlp(tape, hidden)
        hidden = self.normed(tape, 3, hidden)
        return ops.add(tape, residual, hidden)


class NormsAfter(Layer):
    """OLMo 2: norms after attention and MLP only; rotary tables in fp32."""

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated in fp32, and back."""
        element = query.element
        rotated, other = rotary(tape, query, ops.FP32), rotary(tape, key, ops.FP32)
        return ops.to(tape, rotated, element), ops.to(tape, other, element)

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        residual = hidden
        hidden = self.attention(tape, hidden)
        hidden = self.normed(tape, 0, hidden)
        hidden = ops.add(tape, residual, hidden)
        residual = hidden
        hidden = self.mlp(tape, hidden)
        hidden = self.normed(tape, 1, hidden)
        return ops.add(tape, residual, hidden)


class Phi3(PartlyRotary):
    """One matrix for query, key and value, cut in slices."""

    def projected(self, tape: Tape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads."""
        heads = self.heads
        whole = self.of_attention[0](tape, hidden)
        query = ops.part(tape, whole, Size(tokens=heads.query * heads.width))
        key = ops.part(tape, whole, Size(tokens=heads.key_value * heads.width))
        value = ops.part(tape, whole, Size(tokens=heads.key_value * heads.value_width))
        return ops.as_heads(tape, query), ops.as_heads(tape, key), ops.as_heads(tape, value)

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As in Phi-3's apply_rotary_pos_emb."""
        if self.options.liger:
            return ops.copied(tape, query), ops.copied(tape, key)
        first, passed = self.parts(tape, query)
        other, passed_key = self.parts(tape, key)
        tables = self.options.stream
        query = ops.join(tape, (rotary(tape, first, tables), passed))
        return query, ops.join(tape, (rotary(tape, other, tables), passed_key))


class Phi(Parallel, PartlyRotary):
    """Phi 1 to 2."""


class GptOss(Layer):
    """gpt-oss: attention sinks, which add a column to the scores; halves rotated separately."""

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """With rotary positions, half by half."""
        return rotary_by_halves(tape, query), rotary_by_halves(tape, key)

    def attended(self, tape: Tape, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scores with a column of sinks, less their maximum, and a softmax in their own dtype."""
        heads, copies = self.heads, self.options.several_samples
        keys = ops.repeat(tape, key, Size(tokens=heads.query * heads.width))
        values = ops.repeat(tape, value, Size(tokens=heads.query * heads.value_width))
        size = Size(scores=heads.query)
        weights = ops.times_constant(tape, ops.product(tape, ops.by_heads(tape, query, copies=copies), keys, size))
        weights = ops.constant_added(tape, weights)
        with_sinks = joined_with_column(tape, weights)
        with_sinks = less_maximum(tape, with_sinks)
        weights = ops.softmax(tape, with_sinks, with_sinks.element)
        weights = ops.part(tape, weights, size)
        tape.returned.append(weights)
        out = ops.product(tape, weights, values, Size(tokens=heads.query * heads.value_width))
        out = ops.as_tokens(tape, ops.from_heads(tape, out, copies=copies))
        del with_sinks
        return out


def joined_with_column(tape: Tape, scores: Tensor) -> Tensor:
    """One column more; the gradient of the scores is a view."""
    return tape.operation((scores,), lambda gradient: (ops.viewed(gradient),), lambda: ops.like(tape, scores))


def less_maximum(tape: Tape, scores: Tensor) -> Tensor:
    """The scores less their maximum, whose gradient is scattered into zeros and added."""

    def backward(gradient: Tensor) -> tuple[Tensor]:
        ops.like(tape, gradient)
        zeros = ops.like(tape, gradient)
        placed = ops.like(tape, gradient)
        del zeros, placed
        return (gradient,)

    return tape.operation((scores,), backward, lambda: ops.like(tape, scores))


class Latent(Layer):
    """Multi-head latent attention (DeepSeek-V2 and V3)."""

    def attention(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Queries and keys of a part without positions and one with; keys and values from a compressed latent."""
        shape = self.profile.attention
        with tape.named("attention"):
            query = self.queries(tape, hidden)
            nope, rope = shape.head_dim - shape.rotary_dim, shape.rotary_dim
            heads = self.heads.query
            passed, rotated = ops.split(
                tape, query, (Size(tokens=heads * nope), Size(tokens=heads * rope)), head_major=True
            )
            latent = self.by_path("kv_a_proj_with_mqa")(tape, hidden)
            rank = self.norm_size("kv_a_layernorm")
            compressed, shared = ops.split(tape, latent, (Size(tokens=rank), Size(tokens=rope)))
            compressed = self.norms["kv_a_layernorm"](tape, compressed)
            rotated, shared = self.rotated(tape, rotated, shared)
            query = ops.join(tape, (passed, rotated))
            both = ops.as_heads(tape, self.by_path("kv_b_proj")(tape, compressed))
            sizes = Size(tokens=heads * nope), Size(tokens=heads * shape.value_dim)
            key, value = ops.split(tape, both, sizes, head_major=True)
            key = assembled(tape, key, shared, Size(tokens=heads * shape.head_dim))
            out = self.attended(tape, query, key, value)
            return self.of_attention[-1](tape, out)

    def queries(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Queries, through a latent of their own where there is one."""
        if "q_a_layernorm" not in self.norms:
            return ops.as_heads(tape, self.by_path("q_proj")(tape, hidden))
        latent = self.norms["q_a_layernorm"](tape, self.by_path("q_a_proj")(tape, hidden))
        return ops.as_heads(tape, self.by_path("q_b_proj")(tape, latent))

    def rotated(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of columns turned (DeepSeek-V3)."""
        return self._pairs(tape, query), self._pairs(tape, key)

    def _pairs(self, tape: Tape, value: Tensor) -> Tensor:
        half = value.size.times(0.5)
        first, second = ops.part(tape, value, half), ops.part(tape, value, half)
        return ops.join(tape, turned(tape, first, second))

    def by_path(self, name: str) -> Projection:
        """The projection of that name."""
        names = [each.name for each in self.profile.linears if each.part == "attention"]
        return self.of_attention[names.index(name)]

    def norm_size(self, name: str) -> int:
        """Columns of the norm of that name."""
        return next(each.size for each in self.profile.norms if each.name == name)


class LatentComplex(Latent):
    """DeepSeek-V2: positions by complex numbers, in fp32."""

    def rotated(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 copies, turned, and back."""
        wide, other = ops.to(tape, query, ops.FP32), ops.to(tape, key, ops.FP32)
        first = ops.to(tape, ops.times_constant(tape, wide), query.element)
        return first, ops.to(tape, ops.times_constant(tape, other), key.element)


def assembled(tape: Tape, key: Tensor, shared: Tensor, size: Size) -> Tensor:
    """Each head's part and the shared one, copied into a new tensor; the backward copies the gradient for each."""
    own, few, element = key.size, shared.size, key.element
    rest = size.plus(own.times(-1))

    def backward(gradient: Tensor) -> tuple[Tensor, Tensor]:
        whole = ops.like(tape, gradient)
        part = tape.empty(rest, element)
        tape.empty(rest, element)
        again = ops.like(tape, gradient)
        made = tape.empty(own, element, head_major=True)
        del whole, again, part
        return made, tape.empty(few, element)

    return tape.operation((key, shared), backward, lambda: tape.empty(size, element, head_major=True))
