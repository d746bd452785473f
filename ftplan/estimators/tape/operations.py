"""The operations that decoders are made of: what each allocates, saves for its backward, and allocates there.

As in torch (ATen's native functions, tools/autograd/derivatives.yaml); an operation's gradients are made in the order
in which the generated code makes them, the last input's first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ftplan.estimators.tape.graph import Gradients, Parameter, Tensor
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.sizes import GRADIENTS, Size

FP32: Final = 4
MASK: Final = 1
"""Bytes of an element of a boolean mask."""


def like(tape: Tape, value: Tensor, element: int = 0) -> Tensor:
    """A new tensor of the size and layout of ``value``."""
    return tape.empty(value.size, element or value.element, head_major=value.head_major)


def reduced(tape: Tape, value: Tensor, size: Size) -> Tensor:
    """A gradient as large as ``value`` that is summed to ``size`` once all gradients of its operation are made."""
    made = like(tape, value)
    made.reduces = size
    return made


def viewed(value: Tensor, size: Size | None = None) -> Tensor:
    """A view of ``value`` outside the graph."""
    return Tensor(size or value.size, value.element, value.storage, view=True, head_major=value.head_major)


def to(tape: Tape, value: Tensor, element: int) -> Tensor:
    """Convert to elements of ``element`` bytes; the tensor itself if it has them."""
    if value.element == element:
        return value
    before = value.element
    return tape.operation((value,), lambda gradient: (to(tape, gradient, before),), lambda: like(tape, value, element))


def add(tape: Tape, first: Tensor, second: Tensor) -> Tensor:
    """Their sum, in the wider dtype."""
    element = max(first.element, second.element)
    return tape.operation((first, second), lambda gradient: (gradient, gradient), lambda: like(tape, first, element))


def multiply(tape: Tape, first: Tensor, second: Tensor) -> Tensor:
    """Their product; each is saved for the other's gradient."""
    needs = first.requires_grad, second.requires_grad
    element = max(first.element, second.element)

    def backward(gradient: Tensor, *_: object) -> Gradients:
        other = like(tape, gradient) if needs[1] else None
        own = like(tape, gradient) if needs[0] else None
        return own, other

    saved = [second] * needs[0] + [first] * needs[1]
    return tape.operation((first, second), backward, lambda: like(tape, first, element), saved=saved)


def times_constant(tape: Tape, value: Tensor, element: int = 0) -> Tensor:
    """The product with a number, or with a small tensor without gradient whose wider ``element`` the result takes."""
    wider = max(element, value.element)
    return tape.operation((value,), lambda gradient: (like(tape, gradient),), lambda: like(tape, value, wider))


def watched(tape: Tape, value: Tensor, begun: Callable[[], None]) -> Tensor:
    """``value``, with a call when its gradient arrives."""

    def backward(gradient: Tensor) -> Gradients:
        begun()
        return (gradient,)

    return tape.operation((value,), backward, lambda: viewed(value))


def unary(tape: Tape, value: Tensor, *, saves: bool = True, saves_output: bool = False) -> Tensor:
    """An element-wise function that keeps its input, its result or nothing for its one-kernel backward."""
    return tape.operation(
        (value,),
        lambda gradient, *_: (like(tape, gradient),),
        lambda: like(tape, value),
        saved=(value,) if saves else (),
        saves_output=saves_output,
    )


def part(tape: Tape, value: Tensor, size: Size) -> Tensor:
    """A slice; its gradient is as large as the whole, filled with zeros."""
    whole, element = value.size, value.element
    return tape.operation(
        (value,), lambda _: (tape.empty(whole, element, head_major=True),), lambda: viewed(value, size)
    )


def join(tape: Tape, parts: Sequence[Tensor]) -> Tensor:
    """Concatenate; gradients are views."""
    sizes = [each.size for each in parts]
    total = sizes[0]
    for size in sizes[1:]:
        total = total.plus(size)
    element = max(each.element for each in parts)
    return tape.operation(
        tuple(parts),
        lambda gradient: tuple(viewed(gradient, size) for size in sizes),
        lambda: tape.empty(total, element, head_major=True),
    )


def split(tape: Tape, value: Tensor, sizes: Sequence[Size], *, head_major: bool = False) -> list[Tensor]:
    """Views of parts; their gradients are joined, ``head_major`` if they are parts of heads."""
    whole, element = value.size, value.element
    return tape.parts(
        value, sizes, lambda *_: (tape.empty(whole, element, head_major=head_major),), head_major=value.head_major
    )


def as_tokens(tape: Tape, value: Tensor) -> Tensor:
    """Lay [B, heads, S, D] out as [B, S, heads x D]: a view where it lies so, else a copy. Its gradient is a view."""

    def make() -> Tensor:
        if not value.head_major:
            return viewed(value)
        return tape.empty(value.size, value.element)

    return tape.operation((value,), lambda gradient: (viewed(gradient),), make)


def as_heads(tape: Tape, value: Tensor) -> Tensor:
    """See [B, S, heads x D] as [B, heads, S, D]; a gradient that lies by heads is copied back."""

    def backward(gradient: Tensor) -> Gradients:
        if not gradient.head_major:
            return (viewed(gradient),)
        return (viewed(tape.empty(gradient.size, gradient.element)),)

    return tape.operation((value,), backward, lambda: viewed(value))


def repeat(tape: Tape, value: Tensor, size: Size, *, head_major: bool = True) -> Tensor:
    """Keys or values once for every query head: a copy; the gradient is summed over the repetitions."""
    own = value.size
    return tape.operation(
        (value,),
        lambda gradient: (tape.empty(own, gradient.element, head_major=head_major),),
        lambda: tape.empty(size, value.element, head_major=head_major),
    )


def copied(tape: Tape, value: Tensor) -> Tensor:
    """A copy that lies by tokens; the gradient is a view."""
    return tape.operation((value,), lambda gradient: (viewed(gradient),), lambda: tape.empty(value.size, value.element))


def passed(tape: Tape, value: Tensor) -> Tensor:
    """A kernel that works in place, forward and backward."""
    return tape.operation((value,), lambda gradient: (gradient,), lambda: viewed(value))


def added_in_place(tape: Tape, first: Tensor, second: Tensor) -> Tensor:
    """``first += second``."""
    return tape.operation((first, second), lambda gradient: (gradient, gradient), lambda: viewed(first))


def scaled_product(tape: Tape, first: Tensor, second: Tensor, size: Size) -> Tensor:
    """``baddbmm`` with a factor: each gradient is a product, then scaled."""
    shapes = (
        Tensor(first.size, first.element, None, head_major=True),
        Tensor(second.size, second.element, None, head_major=True),
    )

    def backward(_: Tensor, *__: object) -> Gradients:
        raw = like(tape, shapes[1])
        other = like(tape, shapes[1])
        raw = like(tape, shapes[0])
        own = like(tape, shapes[0])
        del raw
        return own, other

    return tape.operation((first, second), backward, lambda: _product(tape, size, first.element), saved=(first, second))


def _product(tape: Tape, size: Size, element: int) -> Tensor:
    made = tape.empty(size, element, head_major=True)
    tape.multiplied()
    return made


def cast_weight(tape: Tape, weight: Parameter, element: int, *, cached: bool = True) -> Tensor | Parameter:
    """Autocast's copy of a weight in the compute dtype; one of a weight that trains is kept until autocast is left.

    It is kept where no graph is built, too, as in the forward of a reentrant checkpoint (measured: LLaMA-Factory's full
    fine-tuning of Llama-3.2-1B on an H100 holds 1.8 GiB of such copies, benchmarks/data/llamafactory.jsonl).
    ``cached`` is False for views of weights, which autocast does not keep (aten/src/ATen/autocast_mode.cpp).
    """
    if weight.element == element:
        return weight
    known = tape.caches.get(weight)
    if known is not None:
        return known
    size, wide = Size(fixed=weight.elements), weight.element
    copy = tape.operation(
        (weight,),
        lambda _: (tape.empty(size, wide, name=GRADIENTS),),
        lambda: tape.empty(size, element, name="weight copies"),
    )
    if weight.trains and cached:
        tape.caches[weight] = copy
    return copy


def linear(
    tape: Tape,
    value: Tensor,
    weight: Parameter,
    out: Size,
    *,
    bias: Parameter | None = None,
    autocast: int = 0,
    cached: bool = True,
) -> Tensor:
    """A matrix product with a weight [out, in], under autocast to ``autocast`` bytes an element if given.

    It saves its input where the weight trains; DeepSpeed's under ZeRO-3 always does (runtime/zero/linear.py).
    ``cached`` is False where the module gives autocast a view of its weight.
    """
    offset = bias if bias is None or not autocast else cast_weight(tape, bias, autocast)
    matrix = cast_weight(tape, weight, autocast, cached=cached) if autocast else weight
    operand = to(tape, value, autocast) if autocast else value
    trains = weight.trains
    needs = operand.requires_grad
    size, element = operand.size, operand.element
    columns = out

    def make() -> Tensor:
        made = tape.empty(columns, element)
        tape.multiplied(with_bias=bias is not None)
        return made

    def by_weight() -> Tensor | None:
        return viewed(tape.empty(Size(fixed=weight.elements), element, name=GRADIENTS)) if trains else None

    def by_operand() -> Tensor | None:
        return viewed(tape.empty(size, element)) if needs else None

    def backward(gradient: Tensor, *_: object) -> Gradients:
        if bias is None:  # as derivatives.yaml orders them: of mm the second operand's first, of addmm the first's
            made = by_weight()
            tape.multiplied()
            return by_operand(), made, None
        own = by_operand()
        tape.multiplied()
        made = by_weight()
        summed = viewed(gradient)
        summed.reduces = Size(fixed=bias.elements)
        return own, made, summed if bias.trains else None

    saved: list[Tensor | Parameter] = [operand] * (trains or tape.keeps_linear_inputs)
    if needs:
        saved.append(matrix)
    return tape.operation((operand, matrix, offset), backward, make, saved=saved)


def dropout(tape: Tape, value: Tensor, probability: float) -> Tensor:
    """CUDA's fused dropout: a copy and a boolean mask (ATen/native/cuda/Dropout.cu)."""
    if not probability or not tape.training:
        return value
    mask: list[Tensor] = []

    def make() -> Tensor:
        out = like(tape, value)
        mask.append(like(tape, value, MASK))
        return out

    out = make()
    kept = mask.pop()
    return tape.operation((value,), lambda gradient, _: (like(tape, gradient),), lambda: out, saved=(kept,))


def through(tape: Tape, gradient: Tensor, temporaries: int) -> tuple[Tensor]:
    """The gradient of a formula of which so many results are held until its last is made."""
    held = [like(tape, gradient) for _ in range(temporaries)]
    made = like(tape, gradient)
    del held
    return (made,)


def custom(
    tape: Tape,
    inputs: Sequence[Tensor | Parameter | None],
    forward: Callable[[], Tensor],
    backward: Callable[..., Gradients],
    saved: Sequence[Tensor | Parameter] = (),
) -> Tensor:
    """An autograd.Function: what it saves is kept after its forward has run."""
    out = forward()
    return tape.operation(inputs, backward, lambda: out, saved=saved)


def constant_added(tape: Tape, value: Tensor) -> Tensor:
    """The sum with something that has no gradient."""
    return tape.operation((value,), lambda gradient: (gradient,), lambda: like(tape, value))


def product(tape: Tape, first: Tensor, second: Tensor, size: Size) -> Tensor:
    """A batched matrix product of [B x heads, ...]; the second operand's gradient is made first."""
    needs = first.requires_grad, second.requires_grad
    shapes = (
        Tensor(first.size, first.element, None, head_major=True),
        Tensor(second.size, second.element, None, head_major=True),
    )

    def backward(*_: object) -> Gradients:
        other = like(tape, shapes[1]) if needs[1] else None
        own = like(tape, shapes[0]) if needs[0] else None
        return own, other

    element = max(first.element, second.element)
    return tape.operation((first, second), backward, lambda: _product(tape, size, element), saved=(first, second))


def by_heads(tape: Tape, value: Tensor, *, copies: bool) -> Tensor:
    """[B, heads, S, D] as [B x heads, S, D] for a batched product: a copy where it lies by tokens and ``copies``."""

    def make() -> Tensor:
        if value.head_major or not copies:
            return viewed(value)
        return tape.empty(value.size, value.element, head_major=True)

    return tape.operation((value,), lambda gradient: (viewed(gradient),), make)


def from_heads(tape: Tape, value: Tensor, *, copies: bool) -> Tensor:
    """The opposite view; a gradient that lies by tokens is copied where ``copies``."""

    def backward(gradient: Tensor) -> Gradients:
        if gradient.head_major or not copies:
            return (viewed(gradient),)
        return (tape.empty(gradient.size, gradient.element, head_major=True),)

    return tape.operation((value,), backward, lambda: viewed(value))


def softmax(tape: Tape, value: Tensor, element: int, *, safe: bool = False) -> Tensor:
    """Softmax with a result of ``element`` bytes, for which its input is converted first; keeps its result.

    ``safe`` is sdpa's, which holds a boolean for each score (ATen/native/transformers/attention.cpp).

    Its backward makes the product of gradient and result beside the gradient (ATen/native/cuda/SoftMax.cu).
    """

    def backward(gradient: Tensor, _: object) -> Gradients:
        made = like(tape, gradient)
        tape.scratch(made.size.times(made.element))
        return (made,)

    wide = to(tape, value, element)

    def make() -> Tensor:
        out = like(tape, wide)
        if safe:
            tape.scratch(out.size)
        return out

    return tape.operation((wide,), backward, make, saves_output=True)
