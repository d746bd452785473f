"""Routed experts as programs (transformers/integrations/moe.py, grouped_mm_experts_forward; peft's ParamWrapper)."""

from __future__ import annotations

from collections.abc import Callable

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Gradients, Parameter, Tensor
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Options
from ftplan.estimators.tape.operations import FP32
from ftplan.estimators.tape.sizes import BACKWARD, GRADIENTS, Size
from ftplan.profiles.model_schema import ExpertsProfile, LayerProfile

INDEX = 8


class FusedWeight:
    """The weights of all experts in one parameter [E, out, in], which autocast and peft copy to compute with."""

    def __init__(self, elements: int, adapter_elements: int, options: Options) -> None:
        self.options = options
        element = options.unquantized if options.quantized else options.weights
        self.weight = Parameter(elements, element, trains=options.trains_all)
        self.adapters = [Parameter(adapter_elements // 2, options.adapters, trains=True) for _ in range(2)]
        if not adapter_elements:
            self.adapters = []

    def operand(self, tape: Tape) -> Tensor | Parameter:
        """What a product multiplies with: the weight, its copy in the compute dtype, or the weight plus adapters."""
        autocast = self.options.autocast
        if not self.adapters:
            return ops.cast_weight(tape, self.weight, autocast) if autocast else self.weight
        first, second = (ops.cast_weight(tape, each, autocast or each.element, cached=False) for each in self.adapters)
        size = Size(fixed=self.weight.elements)
        element = autocast or self.weight.element
        shapes = [(Size(fixed=each.elements), element) for each in self.adapters]

        def backward(_: Tensor, *__: object) -> Gradients:
            made = []
            for shape in reversed(shapes):
                raw = tape.empty(*shape)
                made.append(tape.empty(*shape))
                del raw
            return made[1], made[0]

        return tape.operation(
            (first, second), backward, lambda: tape.empty(size, element, name="weight copies"), saved=(first, second)
        )


class Experts:
    """The router and the routed experts of one layer.

    ``index_tensors`` of an index a chosen expert sort the tokens; ``has_liger_kernel``: Liger replaces the products.
    """

    index_tensors = 2
    has_liger_kernel = True

    def __init__(self, layer: LayerProfile, options: Options, adapted: dict[str, int]) -> None:
        experts = layer.mlp.experts
        assert experts is not None
        self.profile: ExpertsProfile = experts
        self.options = options
        self.hidden = next(each.out_features for each in experts.weights if each.reads == "expert_act")
        up, down = experts.weights[0], experts.weights[-1]
        self.up = FusedWeight(up.weight_params * experts.count, adapted.get(up.name, 0), options)
        self.down = FusedWeight(down.weight_params * experts.count, adapted.get(down.name, 0), options)
        element = options.unquantized if options.quantized else options.weights
        self.router = Parameter(experts.count * self.hidden, element, trains=options.trains_all)
        self.biased = experts.params > sum(each.weight_params for each in experts.weights) * experts.count

    def touch(self, tape: Tape) -> None:
        """peft makes each weight with its adapters once as it puts them in place, and drops it."""
        for each in (self.down, self.up):
            if each.adapters:
                each.operand(tape)

    def __call__(self, tape: Tape, hidden: Tensor, shared: Callable[[Tape, Tensor], Tensor] | None) -> Tensor:
        """The sum of the experts' results by their weights, plus the shared experts'."""
        scores = self.routed(tape, hidden)
        self.touch(tape)
        out = self.mixed(tape, hidden, scores)
        del scores
        return out if shared is None else ops.add(tape, out, shared(tape, hidden))

    def routed(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Weights of the chosen experts: softmax in fp32 over all."""
        count = self.profile.count
        logits = ops.linear(tape, hidden, self.router, Size(tokens=count), autocast=self.options.autocast)
        probabilities = ops.softmax(tape, logits, FP32)
        scores = gathered(tape, probabilities, Size(tokens=self.profile.per_token))
        return ops.to(tape, scores, logits.element)

    def mixed(self, tape: Tape, hidden: Tensor, scores: Tensor) -> Tensor:
        """Tokens gathered by expert, through both products, weighted, put back and summed."""
        if self.options.liger and self.has_liger_kernel:
            return self.fused(tape, hidden, scores)
        per_token, width = self.profile.per_token, self.profile.intermediate_size
        rows, both = Size(tokens=self.hidden * per_token), Size(tokens=self.up_columns * per_token)
        order = [tape.empty(Size(tokens=per_token), INDEX) for _ in range(self.index_tensors)]
        chosen = gathered(tape, hidden, rows)
        weights = self.up.operand(tape)
        bias = self.bias(tape, both, chosen.element)
        out = grouped(tape, chosen, weights, both, self.up.weight)
        out = self.gated(tape, out, Size(tokens=width * per_token))
        weights = self.down.operand(tape)
        bias = self.bias(tape, rows, chosen.element)
        out = grouped(tape, out, weights, rows, self.down.weight)
        weighted = times_rows(tape, out, scores)
        weighted = gathered(tape, weighted, rows)
        total = self.summed(tape, weighted, hidden.element)
        del order, bias, chosen
        return total

    def bias(self, tape: Tape, size: Size, element: int) -> Tensor | None:
        """The biases of the chosen experts by row, of those that have some."""
        del tape, size, element
        return None

    def fused(self, tape: Tape, hidden: Tensor, scores: Tensor) -> Tensor:
        """Liger's kernels for experts keep operands and the first product; the backward makes the others again."""
        per_token, width = self.profile.per_token, self.profile.intermediate_size
        element = hidden.element
        inner, rows = Size(tokens=width * per_token), Size(tokens=self.hidden * per_token)
        up, down = self.up.operand(tape), self.down.operand(tape)
        weights = [
            (Size(fixed=each.weight.elements), each.weight.trains or each.adapters) for each in (self.down, self.up)
        ]
        own, small = hidden.size, scores.size
        first: list[Tensor] = [tape.empty(Size(tokens=self.up_columns * per_token), element)]

        def make() -> Tensor:
            between, last = tape.empty(inner, element), tape.empty(rows, element)
            out = tape.empty(own, element)
            del between, last
            return out

        def backward(_: Tensor, *__: object) -> Gradients:
            spread, between = tape.empty(Size(tokens=self.up_columns * per_token), element), tape.empty(inner, element)
            by_down = tape.empty(weights[0][0], element, name=GRADIENTS) if weights[0][1] else None
            more = tape.empty(rows, element)
            made = tape.empty(own, element)
            by_up = tape.empty(weights[1][0], element, name=GRADIENTS) if weights[1][1] else None
            del spread, between, more
            return made, tape.empty(small, FP32), by_up, by_down

        kept: list[Tensor | Parameter] = [hidden, up, down, first.pop()]
        return tape.operation((hidden, scores, up, down), backward, make, saved=kept)

    @property
    def up_columns(self) -> int:
        """Columns of the first product: gate and up."""
        return self.profile.weights[0].out_features

    def gated(self, tape: Tape, both: Tensor, half: Size) -> Tensor:
        """act(gate) * up."""
        gate, up = ops.split(tape, both, (half, half))
        del both
        return ops.multiply(tape, ops.unary(tape, gate), up)

    def summed(self, tape: Tape, rows: Tensor, before: int) -> Tensor:
        """The sum over a token's experts, in fp32 under autocast, and back to elements of ``before`` bytes."""
        element, rows_size = rows.element, rows.size
        wide = FP32 if self.options.autocast else element
        size = Size(tokens=self.hidden)
        total = tape.operation((rows,), lambda _: (tape.empty(rows_size, element),), lambda: tape.empty(size, wide))
        return ops.to(tape, total, before)


def gathered(tape: Tape, value: Tensor, size: Size) -> Tensor:
    """Rows picked by index; the gradient is put into zeros."""
    own, element = value.size, value.element

    def backward(_: Tensor) -> Gradients:
        zeros = tape.empty(own, element)
        made = tape.empty(own, element)
        del zeros
        return (made,)

    return tape.operation((value,), backward, lambda: tape.empty(size, element))


def grouped(tape: Tape, value: Tensor, weight: Tensor | Parameter, size: Size, whole: Parameter) -> Tensor:
    """A grouped product over experts; the weights' gradient is made first."""
    element = value.element
    own, needs = value.size, value.requires_grad
    trains = isinstance(weight, Tensor) or weight.trains
    matrix = Size(fixed=whole.elements)
    name = GRADIENTS if isinstance(weight, Parameter) else BACKWARD

    def backward(_: Tensor, *__: object) -> Gradients:
        by_weight = tape.empty(matrix, element, name=name) if trains else None
        made = tape.empty(own, element) if needs else None
        return made, by_weight

    saved: list[Tensor | Parameter] = []
    if trains:
        saved.append(value)
    if needs:
        saved.append(weight)
    return tape.operation((value, weight), backward, lambda: tape.empty(size, element), saved=saved)


def times_rows(tape: Tape, value: Tensor, weights: Tensor) -> Tensor:
    """Every row times its weight, whose gradient is summed over the row."""
    small = weights.size
    needs = weights.requires_grad

    def backward(gradient: Tensor, *_: object) -> Gradients:
        rows = ops.reduced(tape, gradient, small) if needs else None
        return ops.like(tape, gradient), rows

    wide = max(value.element, weights.element)
    return tape.operation(
        (value, weights), backward, lambda: ops.like(tape, value, wide), saved=(value,) if needs else ()
    )


class MixtralExperts(Experts):
    """Mixtral: weights of experts stay in fp32, and so does what they weigh."""

    def routed(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Weights of the chosen experts in fp32."""
        return _fp32_scores(self, tape, hidden)


class DeepseekV2Experts(MixtralExperts):
    """DeepSeek-V2: the router computes from fp32 hidden states, its weights stay in fp32."""

    def routed(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Weights of the chosen experts in fp32."""
        return _fp32_scores(self, tape, ops.to(tape, hidden, FP32))


class DeepseekV3Experts(Experts):
    """DeepSeek-V3: the router computes from fp32 hidden states, a sigmoid instead of a softmax."""

    def routed(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Weights of the chosen experts in the product's dtype."""
        count, chosen = self.profile.count, Size(tokens=self.profile.per_token)
        wide = ops.to(tape, hidden, FP32)
        logits = ops.linear(tape, wide, self.router, Size(tokens=count), autocast=self.options.autocast)
        del wide
        scores = ops.unary(tape, logits, saves=False, saves_output=True)
        return gathered(tape, scores, chosen)


class GptOssExperts(Experts):
    """gpt-oss: biases of the chosen experts are gathered by row; gate and up are clamped and interleaved."""

    index_tensors = 0
    has_liger_kernel = False

    def routed(self, tape: Tape, hidden: Tensor) -> Tensor:
        """A softmax over the chosen experts only."""
        count, chosen = self.profile.count, Size(tokens=self.profile.per_token)
        logits = ops.linear(tape, hidden, self.router, Size(tokens=count), autocast=self.options.autocast)
        return gathered(tape, logits, chosen)

    def bias(self, tape: Tape, size: Size, element: int) -> Tensor:
        """A row of each token's expert."""
        return tape.empty(size, element)

    def gated(self, tape: Tape, both: Tensor, half: Size) -> Tensor:
        """(up + 1) * gate * sigmoid(alpha * gate), of clamped halves."""
        gate = clamped(tape, ops.part(tape, both, half), 1)
        up = clamped(tape, ops.part(tape, both, half), 2)
        shares = ops.unary(tape, ops.times_constant(tape, gate), saves=False, saves_output=True)
        glu = ops.multiply(tape, gate, shares)
        return ops.multiply(tape, ops.constant_added(tape, up), glu)


def clamped(tape: Tape, value: Tensor, bounds: int) -> Tensor:
    """Keeps its input; the backward compares it with each bound."""

    def backward(gradient: Tensor, _: object) -> Gradients:
        masks = [ops.like(tape, gradient, ops.MASK) for _ in range(bounds)]
        made = ops.like(tape, gradient)
        del masks
        return (made,)

    return tape.operation((value,), backward, lambda: ops.like(tape, value), saved=(value,))


def _fp32_scores(experts: Experts, tape: Tape, hidden: Tensor) -> Tensor:
    size = Size(tokens=experts.profile.count)
    logits = ops.linear(tape, hidden, experts.router, size, autocast=experts.options.autocast)
    return gathered(tape, ops.softmax(tape, logits, FP32), Size(tokens=experts.profile.per_token))


EXPERTS: dict[str, type[Experts]] = {
    "mixtral": MixtralExperts,
    "deepseek_v2": DeepseekV2Experts,
    "deepseek_v3": DeepseekV3Experts,
    "gpt_oss": GptOssExperts,
}
