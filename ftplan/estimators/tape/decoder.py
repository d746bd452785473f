"""Decoder layers as programs, family by family: transcriptions of transformers' modelling code.

A class holds a layer's modules, made once, so that a recomputation meets the same weights; calling it runs the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ftplan.estimators.tape import kernels
from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.activations import ACTIVATIONS
from ftplan.estimators.tape.attention import attend, is_eager, is_masked
from ftplan.estimators.tape.experts import EXPERTS, Experts, gathered
from ftplan.estimators.tape.kernels import Heads
from ftplan.estimators.tape.machine import Size, Tape, Tensor
from ftplan.estimators.tape.modules import Norm, Options, Projection, Targets
from ftplan.profiles.schema import LayerProfile


class Layer:
    """Llama's layer and what has its shape: a norm before attention and before the MLP, separate projections."""

    def __init__(self, profile: LayerProfile, options: Options, targets: Targets) -> None:
        self.profile = profile
        self.options = options
        made = {each.path: Projection(each, options, adapted=each.path in targets.modules) for each in profile.linears}
        self.of_attention = [made[each.path] for each in profile.linears if each.part == "attention"]
        self.of_mlp = [made[each.path] for each in profile.linears if each.part == "mlp"]
        self.norms = {each.name: Norm(each, options) for each in profile.norms}
        self.hidden_norms = [self.norms[each.name] for each in profile.norms if each.over == "hidden"]
        attention = profile.attention
        self.heads = Heads(attention.heads, attention.kv_heads, attention.head_dim, attention.value_dim)
        self.activation = ACTIVATIONS[profile.mlp.activation]
        self.experts = self.routed_experts(profile, options, targets) if profile.mlp.experts else None
        self.masked = is_masked(profile, options)
        self.eager = is_eager(profile, options)

    def routed_experts(self, profile: LayerProfile, options: Options, targets: Targets) -> Experts:
        """The experts of the family."""
        return EXPERTS.get(targets.model_type, Experts)(profile, options, dict(targets.experts))

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        residual = hidden
        hidden = self.normed(tape, 0, hidden)
        hidden = self.attention(tape, hidden)
        hidden = ops.add(tape, residual, self.dropped(tape, hidden))
        residual = hidden
        hidden = self.normed(tape, 1, hidden)
        hidden = self.mlp(tape, hidden)
        return ops.add(tape, residual, self.dropped(tape, hidden))

    def normed(self, tape: Tape, index: int, hidden: Tensor) -> Tensor:
        """Through the norm of that number."""
        with tape.named("norms"):
            return self.hidden_norms[index](tape, hidden)

    def dropped(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The residual dropout of those that have one."""
        return ops.dropout(tape, hidden, self.options.hidden_dropout)

    # ------------------------------------------------------------------ attention

    def attention(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Self-attention with its output projection."""
        with tape.named("attention"):
            query, key, value = self.projected(tape, hidden)
            query, key = self.positioned(tape, query, key)
            out = self.attended(tape, query, key, value)
            return self.of_attention[-1](tape, out)

    def attended(self, tape: Tape, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention itself."""
        return attend(tape, query, key, value, self.heads, self.options, masked=self.masked, eager=self.eager)

    def projected(self, tape: Tape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads, with the norms of queries and keys."""
        if len(self.of_attention) == 2:
            return self.cut(tape, self.of_attention[0](tape, hidden))
        query_norm, key_norm = self.norms.get("q_norm"), self.norms.get("k_norm")
        query = self.of_attention[0](tape, hidden)
        if query_norm is not None:
            query = query_norm(tape, query)
        query = ops.as_heads(tape, query)
        key = self.of_attention[1](tape, hidden)
        if key_norm is not None:
            key = key_norm(tape, key)
        key = ops.as_heads(tape, key)
        return query, key, ops.as_heads(tape, self.of_attention[2](tape, hidden))

    def cut(self, tape: Tape, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as views of one matrix's result."""
        heads = self.heads
        own = Size(tokens=heads.query * heads.width), Size(tokens=heads.key_value * heads.width)
        query, key, value = ops.split(tape, whole, (*own, Size(tokens=heads.key_value * heads.value_width)))
        return ops.as_heads(tape, query), ops.as_heads(tape, key), ops.as_heads(tape, value)

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """With rotary positions."""
        if self.profile.attention.positions != "rope":
            return query, key
        if self.options.liger:
            return rotary_in_place(tape, query), rotary_in_place(tape, key)
        return rotary(tape, query), rotary(tape, key)

    # ------------------------------------------------------------------ MLP

    def mlp(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The experts, or a dense MLP."""
        with tape.named("mlp"):
            if self.experts is not None:
                return self.experts(tape, hidden, self.dense if self.of_mlp else None)
            return self.dense(tape, hidden)

    def dense(self, tape: Tape, hidden: Tensor) -> Tensor:
        """down(act(gate(x)) * up(x)), or without a gate."""
        profile = self.profile.mlp
        if not profile.gated:
            return self.of_mlp[1](tape, self.activation(tape, self.of_mlp[0](tape, hidden)))
        if profile.fused_gate_up:
            return self.fused(tape, hidden)
        gate, up, down = self.of_mlp
        if self.options.liger:
            return down(tape, liger_product(tape, gate(tape, hidden), up(tape, hidden)))
        return down(tape, ops.multiply(tape, self.activation(tape, gate(tape, hidden)), up(tape, hidden)))

    def fused(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Gate and up from one matrix."""
        both = self.of_mlp[0](tape, hidden)
        half = both.size.times(0.5)
        gate, up = ops.split(tape, both, (half, half))
        if self.options.liger:  # its kernel takes contiguous rows; what they were cut from is held until the end
            product = liger_product(tape, ops.copied(tape, gate), ops.copied(tape, up))
            return self.of_mlp[1](tape, product)
        del both
        up = ops.multiply(tape, up, self.activation(tape, gate))
        return self.of_mlp[1](tape, up)


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


class PartlyRotary(Layer):
    """Rotary positions on the first columns of each head, the rest joined to them."""

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """With rotary positions."""
        attention = self.profile.attention
        share = attention.rotary_dim / attention.head_dim
        rotated_query, passed_query = self.parts(tape, query, share)
        rotated_key, passed_key = self.parts(tape, key, share)
        rotated_query = rotary(tape, rotated_query)
        rotated_key = rotary(tape, rotated_key)
        query = ops.join(tape, (rotated_query, passed_query))
        return query, ops.join(tape, (rotated_key, passed_key))

    def parts(self, tape: Tape, value: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The columns that rotate, and those that do not."""
        return ops.part(tape, value, value.size.times(share)), ops.part(tape, value, value.size.times(1 - share))


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
        attention = self.profile.attention
        share = attention.rotary_dim / attention.head_dim
        first, passed = self.parts(tape, query, share)
        other, passed_key = self.parts(tape, key, share)
        query = ops.join(tape, (rotary(tape, first), passed))
        return query, ops.join(tape, (rotary(tape, other), passed_key))


class Parallel(Layer):
    """Attention and MLP beside each other, from one norm or two."""

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        residual = hidden
        hidden = self.normed(tape, 0, hidden)
        attended = self.attention(tape, hidden)
        attended = self.dropped(tape, attended)
        forward = self.dropped(tape, self.mlp(tape, hidden))
        return ops.add(tape, ops.add(tape, attended, forward), residual)


class Phi(Parallel, PartlyRotary):
    """Phi 1 to 2."""


class GptJ(Parallel):
    """GPT-J: scores in fp32, positions in pairs of columns."""

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys first; stacked pairs are a copy like joined halves."""
        attention = self.profile.attention
        share = attention.rotary_dim / attention.head_dim
        first, passed = ops.part(tape, key, key.size.times(share)), ops.part(tape, key, key.size.times(1 - share))
        other, passed_query = (
            ops.part(tape, query, query.size.times(share)),
            ops.part(tape, query, query.size.times(1 - share)),
        )
        first = rotary(tape, first)
        other = rotary(tape, other)
        key = tokens_joined(tape, (first, passed))
        return tokens_joined(tape, (other, passed_query)), key

    def attended(self, tape: Tape, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scores in fp32, whatever the dtype."""
        copies = self.options.several_samples
        query = ops.to(tape, query, ops.FP32)
        key = ops.to(tape, key, ops.FP32)
        autocast = self.options.autocast or ops.FP32
        scores = ops.product(
            tape,
            ops.to(tape, ops.by_heads(tape, query, copies=copies), autocast),
            ops.to(tape, ops.by_heads(tape, key, copies=copies), autocast),
            Size(scores=self.heads.query),
        )
        scores = ops.times_constant(tape, scores)
        scores = ops.constant_added(tape, scores)
        scores = ops.softmax(tape, scores, ops.FP32)
        scores = ops.to(tape, scores, value.element)
        scores = ops.dropout(tape, scores, self.options.attention_dropout)
        tape.returned.append(scores)
        out = ops.product(
            tape,
            scores,
            ops.by_heads(tape, value, copies=copies),
            Size(tokens=self.heads.query * self.heads.value_width),
        )
        return ops.as_tokens(tape, ops.from_heads(tape, out, copies=copies))


class GptNeoX(Parallel):
    """GPT-NeoX and Pythia: one matrix for query, key and value, interleaved by heads; a norm for each block."""

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        attended = self.attention(tape, self.normed(tape, 0, hidden))
        attended = self.dropped(tape, attended)
        if self.profile.parallel:
            forward = self.mlp(tape, self.normed(tape, 1, hidden))
            forward = self.dropped(tape, forward)
            return ops.add(tape, ops.add(tape, forward, attended), hidden)
        attended = ops.add(tape, attended, hidden)
        forward = self.mlp(tape, self.normed(tape, 1, attended))
        forward = self.dropped(tape, forward)
        return ops.add(tape, forward, attended)

    def projected(self, tape: Tape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads, views of one tensor."""
        whole = ops.as_heads(tape, self.of_attention[0](tape, hidden))
        third = whole.size.times(1 / 3)
        query, key, value = ops.split(tape, whole, (third, third, third), head_major=True)
        return query, key, value

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Slices rotated and joined; the rest of each passes."""
        attention = self.profile.attention
        share = attention.rotary_dim / attention.head_dim
        query_first, query_rest = self._cut(tape, query, share)
        key_first, key_rest = self._cut(tape, key, share)
        rotated_query = rotary(tape, query_first)
        rotated_key = rotary(tape, key_first)
        rotated_query = ops.join(tape, (rotated_query, query_rest))
        rotated_key = ops.join(tape, (rotated_key, key_rest))
        return rotated_query, rotated_key

    def _cut(self, tape: Tape, value: Tensor, share: float) -> tuple[Tensor, Tensor]:
        return ops.part(tape, value, value.size.times(share)), ops.part(tape, value, value.size.times(1 - share))


class Gpt2(Layer):
    """GPT-2: one matrix for query, key and value, learned positions."""

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output; what the norms return is held as long as the blocks run."""
        residual = hidden
        hidden = self.normed(tape, 0, hidden)
        attended = self.dropped(tape, self.attention(tape, hidden))
        hidden = ops.add(tape, attended, residual)
        residual = hidden
        hidden = self.normed(tape, 1, hidden)
        forward = self.dropped(tape, self.mlp(tape, hidden))
        return ops.add(tape, residual, forward)

    def projected(self, tape: Tape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads, views of one tensor."""
        whole = self.of_attention[0](tape, hidden)
        third = whole.size.times(1 / 3)
        query, key, value = ops.split(tape, whole, (third, third, third))
        del whole
        return ops.as_heads(tape, query), ops.as_heads(tape, key), ops.as_heads(tape, value)

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Positions came with the embedding."""
        del tape
        return query, key


class Opt(Layer):
    """OPT: queries are scaled before attention, positions learned."""

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output; its MLP is written into the layer."""
        residual = hidden
        hidden = self.normed(tape, 0, hidden)
        hidden = self.attention(tape, hidden)
        hidden = self.dropped(tape, hidden)
        hidden = ops.add(tape, residual, hidden)
        residual = hidden
        hidden = self.normed(tape, 1, hidden)
        with tape.named("mlp"):
            hidden = self.of_mlp[0](tape, hidden)
            hidden = self.activation(tape, hidden)
            hidden = self.of_mlp[1](tape, hidden)
        hidden = self.dropped(tape, hidden)
        return ops.add(tape, residual, hidden)

    def projected(self, tape: Tape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads."""
        query = ops.times_constant(tape, self.of_attention[0](tape, hidden))
        query = ops.as_heads(tape, query)
        key = self.of_attention[1](tape, hidden)
        value = self.of_attention[2](tape, hidden)
        return query, ops.as_heads(tape, key), ops.as_heads(tape, value)

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Positions came with the embedding."""
        del tape
        return query, key


class Bloom(Layer):
    """BLOOM: scores with ALiBi in one product, a GELU with a backward of its own, residuals inside the blocks."""

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        normed = self.normed(tape, 0, hidden)
        attended = self.attended_onto(tape, normed, hidden)
        normed = self.normed(tape, 1, attended)
        return self.fed_onto(tape, normed, attended)

    def attended_onto(self, tape: Tape, hidden: Tensor, residual: Tensor) -> Tensor:
        """Attention, added to the residual."""
        copies = self.options.several_samples
        with tape.named("attention"):
            whole = self.of_attention[0](tape, hidden)
            third = whole.size.times(1 / 3)
            query = ops.by_heads(tape, ops.part(tape, whole, third), copies=copies)
            key = ops.by_heads(tape, ops.part(tape, whole, third), copies=copies)
            value = ops.by_heads(tape, ops.part(tape, whole, third), copies=copies)
            scores = ops.scaled_product(tape, query, key, Size(scores=self.heads.query))
            weights = ops.constant_added(tape, scores)
            shares = ops.to(tape, ops.softmax(tape, weights, ops.FP32), query.element)
            shares = ops.dropout(tape, shares, self.options.attention_dropout)
            tape.returned.append(shares)
            out = ops.product(tape, shares, value, Size(tokens=self.heads.query * self.heads.value_width))
            out = ops.as_tokens(tape, ops.from_heads(tape, out, copies=copies))
            out = self.of_attention[1](tape, out)
            return ops.add(tape, residual, self.dropped(tape, out))

    def fed_onto(self, tape: Tape, hidden: Tensor, residual: Tensor) -> Tensor:
        """The MLP, added to the residual."""
        with tape.named("mlp"):
            hidden = bloom_gelu(tape, self.of_mlp[0](tape, hidden))
            out = self.of_mlp[1](tape, hidden)
            return ops.add(tape, residual, self.dropped(tape, out))


class Falcon(Layer):
    """Falcon: attention and MLP beside each other; keys and values of one head, or of a few that are repeated."""

    def __init__(self, profile: LayerProfile, options: Options, targets: Targets) -> None:
        super().__init__(profile, options, targets)
        self.masked = True

    def __call__(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The layer's output."""
        residual = hidden
        first = self.normed(tape, 0, hidden)
        second = self.normed(tape, 1, hidden) if len(self.hidden_norms) > 1 else first
        attended = self.attention(tape, first)
        if not self.profile.parallel:
            residual = ops.add(tape, residual, self.dropped(tape, attended))
            return ops.add(tape, residual, self.dropped(tape, self.mlp(tape, second)))
        out = ops.added_in_place(tape, self.mlp(tape, second), attended)
        return ops.add(tape, residual, self.dropped(tape, out))

    def attention(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Self-attention; what the projection returned is held throughout."""
        with tape.named("attention"):
            whole = self.of_attention[0](tape, hidden)
            query, key, value = self.cut(tape, whole)
            query, key = self.positioned(tape, query, key)
            out = self.attended(tape, query, key, value)
            return self.of_attention[-1](tape, out)

    def cut(self, tape: Tape, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by heads."""
        heads = self.heads
        width = heads.width
        query = ops.part(tape, whole, Size(tokens=heads.query * width))
        if heads.key_value == heads.query:
            key = ops.part(tape, whole, Size(tokens=heads.query * width))
            value = ops.part(tape, whole, Size(tokens=heads.query * width))
            return query, key, value
        few = Size(tokens=heads.key_value * width)
        key, value = gathered(tape, whole, few), gathered(tape, whole, few)
        if heads.key_value == 1:
            return query, key, value
        # The new decoder architecture copies keys and values for every query head, and the query beside them.
        many = Size(tokens=heads.query * width)
        query = ops.as_heads(tape, ops.copied(tape, query))
        key = ops.as_heads(tape, ops.repeat(tape, key, many, head_major=False))
        value = ops.as_heads(tape, ops.repeat(tape, value, many, head_major=False))
        return query, key, value

    def attended(self, tape: Tape, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """sdpa with a mask; one head of keys and values takes plain matrix products."""
        if self.heads.key_value == 1 < self.heads.query and not self.eager:
            return ops.as_tokens(tape, kernels.plain_attention(tape, query, key, value, self.heads))
        heads = self.heads.ungrouped
        return attend(tape, query, key, value, heads, self.options, masked=self.masked, eager=self.eager)


def bloom_gelu(tape: Tape, value: Tensor) -> Tensor:
    """BloomGelu: an autograd.Function that keeps its input."""

    def forward() -> Tensor:
        half = ops.like(tape, value)
        scaled = ops.like(tape, value)
        inner = ops.like(tape, value)
        inner = ops.like(tape, value)
        inner = ops.like(tape, value)
        inner = ops.like(tape, value)
        del scaled
        inner = ops.like(tape, value)
        inner = ops.like(tape, value)
        out = ops.like(tape, value)
        del half, inner
        return out

    def backward(gradient: Tensor, _: object) -> tuple[Tensor]:
        tanh = ops.like(tape, gradient)
        left = ops.like(tape, gradient)
        right = ops.like(tape, gradient)
        more = ops.like(tape, gradient)
        last = ops.like(tape, gradient)
        del left, right, more, last, tanh
        return (ops.like(tape, gradient),)

    return ops.custom(tape, (value,), forward, backward, saved=(value,))


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


def rotary(tape: Tape, value: Tensor, tables: int = 0) -> Tensor:
    """``value * cos + rotate_half(value) * sin``; tables of wider elements widen the result."""
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


def liger_product(tape: Tape, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up in one kernel, whose backward writes the gradients where gate and up are."""

    def backward(_: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return gate, up

    return tape.operation((gate, up), backward, lambda: ops.like(tape, gate), saved=(gate, up))


def rotate_half(tape: Tape, value: Tensor) -> Tensor:
    """The halves of each head exchanged, the second negated."""
    half = value.size.times(0.5)
    first = ops.part(tape, value, half)
    second = ops.part(tape, value, half)
    return ops.join(tape, (ops.unary(tape, second, saves=False), first))


def tokens_joined(tape: Tape, parts: Sequence[Tensor]) -> Tensor:
    """Joined before the heads are moved to the front."""
    return ops.join(tape, parts)


LAYERS: Final[dict[str, type[Layer]]] = {
    "gemma2": FourNorms,
    "gemma3": FourNorms,
    "gemma3_text": FourNorms,
    "olmo2": NormsAfter,
    "phi3": Phi3,
    "phi": Phi,
    "gptj": GptJ,
    "gpt_neox": GptNeoX,
    "gpt2": Gpt2,
    "opt": Opt,
    "bloom": Bloom,
    "falcon": Falcon,
    "gpt_oss": GptOss,
    "deepseek_v2": LatentComplex,
    "deepseek_v3": Latent,
}


def layer_program(model_type: str, profile: LayerProfile, options: Options, targets: Targets) -> Layer:
    """The program of one of the layers of an architecture; Llama's where it has no other."""
    return LAYERS.get(model_type, Layer)(profile, options, targets)
