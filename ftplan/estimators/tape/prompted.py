"""A layer of Llama's kind in LLaMA-Adapter's wrapper (peft 0.21.2 tuners/adaption_prompt/layer.py)."""

from __future__ import annotations

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Parameter, Tensor
from ftplan.estimators.tape.layer import Layer
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Options, Targets
from ftplan.estimators.tape.operations import FP32
from ftplan.estimators.tape.rotary import rotary
from ftplan.estimators.tape.sizes import Size
from ftplan.profiles.model_schema import LayerProfile


class Prompted(Layer):
    """Attention to a prompt of its own, weighed by a gate, beside that to the sequence.

    The prompt [1, length, hidden] goes through the layer's own projections of keys and values; the queries are computed
    a second time, and so are the sequence's values, which nobody reads (utils.py, llama_compute_query_states).
    """

    def __init__(self, profile: LayerProfile, options: Options, targets: Targets) -> None:
        super().__init__(profile, options, targets)
        self.length = profile.prompt_tokens
        hidden = profile.linears[0].in_features
        self.prompt = Parameter(self.length * hidden, options.adapters, trains=True)
        self.gate = Parameter(1, options.adapters, trains=True)

    def attention(self, tape: Tape, hidden: Tensor) -> Tensor:
        """AdaptedAttention.forward: names and their lifetimes are its own."""
        heads = self.heads
        output = super().attention(tape, hidden)
        with tape.named("attention"):
            prompt = self._prompt(tape)
            key = self.of_attention[1](tape, prompt, rows=self.length)
            value = self.of_attention[2](tape, prompt, rows=self.length)
            del prompt
            adapter_key = self._copies(tape, key, heads.key_value * heads.width)
            adapter_value = self._copies(tape, value, heads.key_value * heads.value_width)
            adapter_key = self._copies(tape, adapter_key, heads.query * heads.width)
            adapter_value = self._copies(tape, adapter_value, heads.query * heads.value_width)
            query = self._queries(tape, hidden)
            before = query.element
            scores = self._scores(tape, query, ops.to(tape, adapter_key, before))
            scores = gated(tape, self.gate, ops.to(tape, ops.softmax(tape, scores, FP32), before))
            adapted = self._weighed(tape, scores, adapter_value)
            adapted = self.of_attention[-1](tape, adapted)
            output = ops.add(tape, output, adapted)
            return ops.to(tape, output, before)

    def _prompt(self, tape: Tape) -> Tensor:
        """The prompt as the projections read it; autocast keeps its copy, as it does of any weight that trains."""
        options = self.options
        autocast = options.autocast if not options.quantized else 0
        read = ops.cast_weight(tape, self.prompt, autocast) if autocast else self.prompt
        if isinstance(read, Tensor):
            return read
        leaf = Tensor(Size(fixed=read.elements), read.element, None)
        leaf.node = read
        return leaf

    def _copies(self, tape: Tape, value: Tensor, columns: int) -> Tensor:
        """A copy for each sample (``repeat``), or for each query head of a key's (``repeat_interleave``)."""
        # Samples are tokens over the length of each.
        return ops.repeat(tape, value, Size(tokens=self.length * columns / self.options.seq_len))

    def _queries(self, tape: Tape, hidden: Tensor) -> Tensor:
        """The queries again, with the values that are computed beside them and live as long as the call."""
        query = ops.as_heads(tape, self.of_attention[0](tape, hidden))
        values = ops.as_heads(tape, self.of_attention[2](tape, hidden))
        query = rotary(tape, query, self.options.stream)
        del values
        return query

    def _scores(self, tape: Tape, query: Tensor, key: Tensor) -> Tensor:
        """[B, heads, S, length], a product over the root of the width."""
        size = Size(tokens=self.heads.query * self.length)
        query, key = self._operand(tape, query), self._operand(tape, key)
        query = ops.by_heads(tape, query, copies=self.options.several_samples)
        return ops.times_constant(tape, ops.product(tape, query, key, size))

    def _weighed(self, tape: Tape, scores: Tensor, value: Tensor) -> Tensor:
        """[B, S, heads x width] of the prompt's values."""
        size = Size(tokens=self.heads.query * self.heads.value_width)
        out = ops.product(tape, self._operand(tape, scores), self._operand(tape, value), size)
        out = ops.from_heads(tape, out, copies=self.options.several_samples)
        return ops.as_tokens(tape, out)

    def _operand(self, tape: Tape, value: Tensor) -> Tensor:
        """Autocast's conversion of what is multiplied."""
        return ops.to(tape, value, self.options.autocast) if self.options.autocast else value


def gated(tape: Tape, gate: Parameter, shares: Tensor) -> Tensor:
    """``gate * shares`` with a gate [1], whose wider dtype the result takes."""
    element = max(gate.element, shares.element)

    def backward(gradient: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        own = ops.like(tape, gradient)
        return ops.reduced(tape, gradient, Size(fixed=gate.elements)), own

    return tape.operation((gate, shares), backward, lambda: ops.like(tape, shares, element), saved=(gate, shares))
