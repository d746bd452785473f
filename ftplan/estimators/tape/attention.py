"""Which attention runs for a configuration: cuDNN's, flash, memory-efficient, eager, or plain products."""

from __future__ import annotations

from ftplan.estimators.tape import kernels
from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.kernels import Heads
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Options
from ftplan.estimators.tape.operations import FP32
from ftplan.estimators.tape.sizes import Size
from ftplan.profiles.model_schema import LayerProfile

HALF = 2


def is_eager(layer: LayerProfile, options: Options) -> bool:
    """Whether the scores are materialised in the model's own code: asked for, or there is no other kernel."""
    return options.attention == "eager" or options.attention not in layer.attention.supports


def is_masked(layer: LayerProfile, options: Options) -> bool:
    """Whether sdpa gets a mask: padded or packed batches, or a window shorter than the sequence."""
    window = layer.attention.window
    return options.padding or options.packing or (window is not None and options.seq_len >= window)


def mask_kind(layer: LayerProfile, options: Options) -> tuple[Size, int] | None:
    """Elements and element of the mask that a layer gets, or None."""
    if is_eager(layer, options):
        return Size(scores=1), options.compute
    if options.attention == "flash_attention_2" or not is_masked(layer, options):
        return None
    return (Size(scores=1) if options.padding or options.packing else Size(mask=1)), 1


def attend(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, options: Options, *, masked: bool, eager: bool
) -> Tensor:
    """Attention over [B, heads, S, D] operands; the result lies by tokens, [B, S, heads x D].

    ``masked``: it gets a mask [B, 1, S, S]; ``eager``: the scores are materialised in the model's own code.
    """
    if eager:
        return eager_attention(tape, query, key, value, heads, options)
    if options.attention == "flash_attention_2":
        return ops.as_tokens(tape, flash(tape, query, key, value, heads))
    if masked and heads.grouped:
        key = ops.repeat(tape, key, Size(tokens=heads.query * heads.width))
        value = ops.repeat(tape, value, Size(tokens=heads.query * heads.value_width))
        heads = heads.ungrouped
    return ops.as_tokens(tape, scaled_dot_product(tape, query, key, value, heads, options, masked=masked))


def scaled_dot_product(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, options: Options, *, masked: bool
) -> Tensor:
    """torch's own choice (ATen/native/transformers/cuda/sdp_utils.cpp)."""
    if options.autocast:
        query, key, value = (ops.to(tape, each, options.autocast) for each in (query, key, value))
    half = query.element == HALF
    same = heads.width == heads.value_width
    if half and same and options.cudnn and heads.width % 8 == 0 and heads.width <= kernels.WIDEST_FUSED_HEAD:
        return kernels.cudnn_attention(tape, query, key, value, heads, mask=mask_of(tape, options, masked=masked))
    if half and not masked and heads.width <= kernels.WIDEST_FUSED_HEAD:
        return flash(tape, query, key, value, heads)
    if not heads.grouped:
        return kernels.efficient_attention(tape, query, key, value, heads, mask=mask_of(tape, options, masked=masked))
    return kernels.plain_attention(tape, query, key, value, heads)


def mask_of(tape: Tape, options: Options, *, masked: bool) -> Tensor | None:
    """The additive mask that sdpa makes of a boolean one, for each call anew."""
    if not masked:
        return None
    return tape.empty(Size(scores=1), options.compute)


def flash(tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
    """FlashAttention 2; heads are padded to a multiple of 8 columns, values to the width of queries."""
    width = -(-heads.width // 8) * 8
    if width == heads.width == heads.value_width:
        return kernels.flash_attention(tape, query, key, value, heads)
    padded = Heads(heads.query, heads.key_value, width, width)
    query = padded_to(tape, query, Size(tokens=heads.query * width))
    key = padded_to(tape, key, Size(tokens=heads.key_value * width))
    value = padded_to(tape, value, Size(tokens=heads.key_value * width))
    out = kernels.flash_attention(tape, query, key, value, padded)
    return ops.part(tape, out, Size(tokens=heads.query * heads.value_width))


def padded_to(tape: Tape, value: Tensor, size: Size) -> Tensor:
    """A copy with columns of zeros, even if there are none to add; the gradient is cut to a copy."""
    own, element = value.size, value.element
    return tape.operation(
        (value,),
        lambda _: (tape.empty(own, element, head_major=True),),
        lambda: tape.empty(size, element, head_major=True),
    )


def eager_attention(tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, options: Options) -> Tensor:
    """Scores, mask, softmax in fp32, product with the values (transformers' eager_attention_forward)."""
    copies = options.several_samples
    keys, values = key, value
    if heads.grouped:
        keys = ops.repeat(tape, key, Size(tokens=heads.query * heads.width))
        values = ops.repeat(tape, value, Size(tokens=heads.query * heads.value_width))
    scores = ops.times_constant(
        tape,
        ops.product(
            tape,
            ops.by_heads(tape, query, copies=copies),
            ops.by_heads(tape, keys, copies=copies),
            Size(scores=heads.query),
        ),
    )
    scores = ops.constant_added(tape, scores)
    if options.scores_softcap:
        scores = softcapped(tape, scores)
    scores = ops.to(tape, ops.softmax(tape, scores, FP32), query.element)
    scores = ops.dropout(tape, scores, options.attention_dropout)
    tape.returned.append(scores)
    out = ops.product(
        tape, scores, ops.by_heads(tape, values, copies=copies), Size(tokens=heads.query * heads.value_width)
    )
    out = ops.from_heads(tape, out, copies=copies)
    return ops.as_tokens(tape, out)


def softcapped(tape: Tape, value: Tensor) -> Tensor:
    """``tanh(value / cap) * cap``."""
    value = ops.times_constant(tape, value)
    value = ops.unary(tape, value, saves=False, saves_output=True)
    return ops.times_constant(tape, value)
