"""Layers of the GPT kind, from GPT-2 to Falcon: transcriptions of transformers' modelling code."""

from __future__ import annotations

from ftplan.estimators.tape import kernels
from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.attention import attend
from ftplan.estimators.tape.experts import gathered
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.layer import Layer, Parallel, PartlyRotary
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Options, Targets
from ftplan.estimators.tape.rotary import rotary
from ftplan.estimators.tape.sizes import Size
from ftplan.profiles.model_schema import LayerProfile


class GptJ(Parallel, PartlyRotary):
    """GPT-J: scores in fp32, positions in pairs of columns."""

    returns_scores = True

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys first; stacked pairs are a copy like joined halves."""
        first, passed = self.parts(tape, key)
        other, passed_query = self.parts(tape, query)
        first = rotary(tape, first)
        other = rotary(tape, other)
        key = ops.join(tape, (first, passed))
        return ops.join(tape, (other, passed_query)), key

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


class GptNeoX(Parallel, PartlyRotary):
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

    returns_scores = True

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


class Falcon(Layer):
    """Falcon: attention and MLP beside each other; keys and values of one head, or of a few that are repeated."""

    returns_scores = True

    def __init__(self, profile: LayerProfile, options: Options, targets: Targets) -> None:
        super().__init__(profile, options, targets)
        self.masked = True
        for projection in (*self.of_attention, *self.of_mlp):
            projection.transposes = True  # FalconLinear: input @ weight.T

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
