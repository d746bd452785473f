"""Modules of a decoder as programs: projections with adapters and 4-bit weights, norms, MLPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.gathering import Groups
from ftplan.estimators.tape.graph import Parameter, Tensor
from ftplan.estimators.tape.machine import Reduction, Tape
from ftplan.estimators.tape.operations import FP32
from ftplan.estimators.tape.sizes import GRADIENTS, Size
from ftplan.profiles.model_schema import LinearProfile, NormProfile

NO_REDUCTION: Final = Reduction()


@dataclass(frozen=True)
class Options:
    """All of a configuration that decides which operations run on elements of which size.

    ``autocast`` is the compute dtype's bytes under autocast, 0 without. ``weights`` are the base weights' bytes,
    ``unquantized`` those of norms, embeddings and head, ``adapters`` the adapters' in the forward, ``stream`` the
    residual stream's.
    """

    compute: int
    autocast: int
    weights: int
    unquantized: int
    adapters: int
    stream: int
    trains_all: bool
    rank: int = 0
    dropout: float = 0.0
    quantized: bool = False
    double_quantization: bool = False
    checkpointing: bool = True
    reentrant: bool = False
    attention: str = "sdpa"
    padding: bool = False
    packing: bool = False
    seq_len: int = 1024
    several_samples: bool = True
    scores_softcap: bool = False
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    embedding_dropout: float = 0.0
    inputs_require_gradients: bool = True
    loss_path: str = "full"
    loss_chunks: int = 0
    casts_outputs: bool = True
    accumulates: bool = False
    reduction: Reduction = NO_REDUCTION
    groups: Groups | None = None
    liger: bool = False
    cudnn: bool = True
    keeps_linear_inputs: bool = False


class Targets(NamedTuple):
    """What LoRA adapts in a layer: paths of modules, and names of fused expert weights with their adapters' elements.

    ``model_type`` is the family, on which a layer's experts depend.
    """

    model_type: str = ""
    modules: frozenset[str] = frozenset()
    experts: tuple[tuple[str, int], ...] = ()


class Projection:
    """A linear module, 4-bit or not, with or without peft's adapter around it."""

    def __init__(self, profile: LinearProfile, options: Options, *, adapted: bool) -> None:
        self._profile = profile
        self._options = options
        packed = options.quantized and profile.is_linear and profile.quantizable
        self._packed = packed
        element = options.weights if not options.quantized else options.unquantized
        self._weight = Parameter(profile.weight_params, element, trains=options.trains_all)
        self._bias = Parameter(profile.out_features, element, trains=options.trains_all) if profile.bias else None
        self._adapter = _Adapter(profile, options) if adapted else None
        self._out = Size(tokens=profile.out_features)
        self.transposes = False
        """Its forward multiplies by a transposed view of the weight, which autocast converts anew each time."""

    def __call__(self, tape: Tape, value: Tensor, *, rows: int = 0) -> Tensor:
        """[T, in] to [T, out]; with ``rows``, of a value that is no sequence, [rows, in] to [rows, out]."""
        if self._adapter is None:
            return self._base(tape, value, Size(fixed=rows * self._profile.out_features) if rows else self._out)
        return self._adapter(tape, value, self._base, packed=self._packed)

    def _base(self, tape: Tape, value: Tensor, out: Size | None = None) -> Tensor:
        if self._packed:
            return self._unpacking(tape, value, out or self._out)
        return ops.linear(
            tape,
            value,
            self._weight,
            out or self._out,
            bias=self._bias,
            autocast=self._options.autocast,
            cached=not self.transposes,
        )

    def _unpacking(self, tape: Tape, value: Tensor, columns: Size) -> Tensor:
        """bitsandbytes' Linear4bit: converts its input, unpacks the weight, multiplies, converts back."""
        options, before = self._options, value.element
        operand = ops.to(tape, value, options.compute)
        elements = self._profile.weight_params
        scales = Size(fixed=-(-elements // 64))
        size = operand.size

        def unpacked() -> Tensor:
            held = [tape.empty(scales, FP32) for _ in range(2)] if options.double_quantization else []
            weight = tape.empty(Size(fixed=elements), options.compute)
            del held
            return weight

        def forward() -> Tensor:
            weight = tape.empty(Size(fixed=elements), options.compute)
            out = tape.empty(columns, options.compute)
            del weight
            return out

        def backward(_: Tensor) -> tuple[Tensor]:
            weight = unpacked()
            made = ops.viewed(tape.empty(size, options.compute))
            del weight
            return (made,)

        out = ops.custom(tape, (operand,), forward, backward)
        return ops.to(tape, out, before)


class _Adapter:
    """peft's LoRA around a projection (tuners/lora/layer.py, bnb.py)."""

    def __init__(self, profile: LinearProfile, options: Options) -> None:
        self._options = options
        rank = options.rank
        self._first = Parameter(rank * profile.in_features, options.adapters, trains=True)
        self._second = Parameter(rank * profile.out_features, options.adapters, trains=True)
        self._out = Size(tokens=profile.out_features)

    def __call__(self, tape: Tape, value: Tensor, base: Callable[[Tape, Tensor], Tensor], *, packed: bool) -> Tensor:
        """The projection's result plus the adapter's."""
        options = self._options
        result = base(tape, value)
        if packed:
            result = _clone(tape, result)
        expected = result.element
        converts = not (packed and options.autocast)
        if converts:
            value = ops.to(tape, value, options.adapters)
        update = self._update(tape, value)
        if packed and converts:
            update = ops.to(tape, update, expected)
        result = ops.add(tape, result, update)
        del update
        return result if packed else ops.to(tape, result, expected)

    def _update(self, tape: Tape, value: Tensor) -> Tensor:
        """lora_B(lora_A(dropout(x))) * scaling."""
        options, second = self._options, self._second
        low = Size(tokens=options.rank)
        return ops.times_constant(
            tape,
            ops.linear(
                tape,
                ops.linear(
                    tape, ops.dropout(tape, value, options.dropout), self._first, low, autocast=options.autocast
                ),
                second,
                self._out,
                autocast=options.autocast,
            ),
        )


def _clone(tape: Tape, value: Tensor) -> Tensor:
    return tape.operation((value,), lambda gradient: (gradient,), lambda: ops.like(tape, value))


class Norm:
    """A normalisation of ``width`` columns in all: LayerNorm, or an RMS norm as transformers writes it out."""

    def __init__(self, profile: NormProfile, options: Options) -> None:
        self._profile = profile
        self._options = options
        element = options.unquantized
        self._weight = Parameter(profile.size, element, trains=options.trains_all)
        self._bias = Parameter(profile.size, element, trains=options.trains_all) if profile.bias else None

    def __call__(self, tape: Tape, value: Tensor) -> Tensor:
        """As large as ``value``; LayerNorm answers in fp32 under autocast."""
        if self._options.liger and self._profile.kind == "rms":
            return self._liger(tape, value)
        if self._profile.kind == "layer":
            return self._layer(tape, value)
        return self._rms(tape, value)

    def _liger(self, tape: Tape, value: Tensor) -> Tensor:
        """Liger's kernel keeps its input; its backward writes into the gradient, but for Gemma's and OLMo 2's norms."""
        weight, in_place = self._weight, not self._profile.weighs_in_fp32

        def backward(gradient: Tensor, _: object) -> tuple[Tensor | None, ...]:
            own = gradient if in_place else ops.like(tape, gradient)
            made = None
            if weight.trains:
                made = tape.empty(Size(fixed=weight.elements), weight.element, name=GRADIENTS)
            return own, made

        return tape.operation((value, weight), backward, lambda: ops.like(tape, value), saved=(value,))

    def _rms(self, tape: Tape, value: Tensor) -> Tensor:
        before = value.element
        hidden = ops.to(tape, value, FP32)
        hidden = _times_inverse_root(tape, hidden)
        if self._profile.weighs_in_fp32:
            return ops.to(tape, _times_weight(tape, hidden, self._weight), before)
        return _times_weight(tape, ops.to(tape, hidden, before), self._weight)

    def _layer(self, tape: Tape, value: Tensor) -> Tensor:
        hidden = ops.to(tape, value, FP32) if self._options.autocast else value
        trains = self._weight.trains
        columns = self._profile.size

        def backward(*_: object) -> tuple[Tensor | None, ...]:
            own = ops.like(tape, hidden_size)
            made = [tape.empty(Size(fixed=columns), FP32, name=GRADIENTS) if trains else None for _ in range(2)]
            return (own, *made)

        hidden_size = Tensor(hidden.size, hidden.element, None)
        return tape.operation(
            (hidden, self._weight, self._bias), backward, lambda: ops.like(tape, hidden), saved=(hidden,)
        )


def _times_inverse_root(tape: Tape, hidden: Tensor) -> Tensor:
    """``hidden * rsqrt(mean(hidden ** 2))``: the square comes and goes, ``hidden`` is kept twice over."""
    squares = tape.operation(
        (hidden,), lambda gradient, _: ops.through(tape, gradient, 2), lambda: ops.like(tape, hidden), saved=(hidden,)
    )
    roots = tape.operation((squares,), lambda _: (ops.like(tape, shape),), lambda: Tensor(Size(tokens=1), FP32, None))
    shape = Tensor(hidden.size, FP32, None, head_major=hidden.head_major)
    del squares
    needs = hidden.requires_grad

    def backward(gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        by_root = ops.like(tape, gradient)
        own = ops.like(tape, gradient) if needs else None
        del by_root
        return own, Tensor(Size(tokens=1), FP32, None)

    return tape.operation((hidden, roots), backward, lambda: ops.like(tape, hidden), saved=(hidden,))


def _times_weight(tape: Tape, hidden: Tensor, weight: Parameter) -> Tensor:
    """A row of weights over every token."""
    trains, needs = weight.trains, hidden.requires_grad

    def backward(gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        own = ops.like(tape, gradient) if needs else None
        rows = ops.like(tape, gradient) if trains else None
        made = None
        if trains:
            tape.summed(weight.elements, gradient.element)
            made = tape.empty(Size(fixed=weight.elements), weight.element, name=GRADIENTS)
        del rows
        return own, made

    saved = (hidden,) if trains else ()
    return tape.operation((hidden, weight), backward, lambda: ops.like(tape, hidden), saved=saved)
