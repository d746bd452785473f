"""A decoder layer as a program: Llama's, and what the other families change of it.

A class holds a layer's modules, made once, so that a recomputation meets the same weights; calling it runs the forward.
"""

from __future__ import annotations

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.activations import ACTIVATIONS
from ftplan.estimators.tape.attention import attend, is_eager, is_masked
from ftplan.estimators.tape.experts import EXPERTS, Experts
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.kernels import Heads
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Norm, Options, Projection, Targets
from ftplan.estimators.tape.rotary import rotary, rotary_in_place
from ftplan.estimators.tape.sizes import Size
from ftplan.profiles.model_schema import LayerProfile


class Layer:
    """Llama's layer and what has its shape: a norm before attention and before the MLP, separate projections.

    ``returns_scores``: it returns the shares of attention beside its result, and the model's loop holds them until the
    next layer has run.
    """

    returns_scores = False

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
        tables = self.options.stream
        return rotary(tape, query, tables), rotary(tape, key, tables)

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


class PartlyRotary(Layer):
    """Rotary positions on the first columns of each head, the rest joined to them."""

    def positioned(self, tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """With rotary positions."""
        rotated_query, passed_query = self.parts(tape, query)
        rotated_key, passed_key = self.parts(tape, key)
        rotated_query = rotary(tape, rotated_query, self.options.stream)
        rotated_key = rotary(tape, rotated_key, self.options.stream)
        query = ops.join(tape, (rotated_query, passed_query))
        return query, ops.join(tape, (rotated_key, passed_key))

    def parts(self, tape: Tape, value: Tensor) -> tuple[Tensor, Tensor]:
        """The columns that rotate, and those that do not."""
        attention = self.profile.attention
        share = attention.rotary_dim / attention.head_dim
        return ops.part(tape, value, value.size.times(share)), ops.part(tape, value, value.size.times(1 - share))


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


def liger_product(tape: Tape, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up in one kernel, whose backward writes the gradients where gate and up are."""

    def backward(_: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return gate, up

    return tape.operation((gate, up), backward, lambda: ops.like(tape, gate), saved=(gate, up))
