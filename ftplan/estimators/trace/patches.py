"""What has to answer differently while a step runs on fake tensors; everything is put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch

from ftplan.estimators.trace.attention import ScaledDotProduct
from ftplan.estimators.trace.kernels import Device
from ftplan.spec import RunConfig

_FP32_OPERATORS: Final = (
    "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p",
    "softplus", "norm.Scalar", "layer_norm", "group_norm", "nll_loss", "acos", "asin", "cosh", "tan",
)  # fmt: skip
"""Operators whose inputs autocast converts to fp32 on CUDA (aten/src/ATen/autocast_mode.h) and not on a CPU, of those
that language models use."""
_FP32_RESULTS: Final = (
    "softmax.int", "log_softmax.int", "cumsum", "cumprod", "sum", "sum.dim_IntList", "prod", "prod.dim_int",
)  # fmt: skip
"""Operators that autocast asks for fp32 results on CUDA, without converting what goes in."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside."""
    own = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


_MISSING: Final = object()


@contextmanager
def device_behaviour(device: Device, config: RunConfig) -> Iterator[None]:
    """CUDA's choice of kernels, its autocast lists, and answers to what would look at data."""
    import transformers.masking_utils as masks
    from torch.optim import adam, sgd

    with ExitStack() as stack:
        enter = stack.enter_context
        enter(cuda_autocast())
        enter(replaced(torch.nn.functional, "dropout", _dropout))
        enter(replaced(torch.nn.functional, "scaled_dot_product_attention", ScaledDotProduct(device)))
        asked = torch.is_autocast_enabled
        # peft's 4-bit layers ask for CUDA's state, which the CPU's stands in for.
        enter(replaced(torch, "is_autocast_enabled", lambda _="cpu": asked("cpu")))
        enter(replaced(masks, "find_packed_sequence_indices", _packed_indices(config.packing)))
        for module in (adam, sgd):
            if hasattr(module, "_get_value"):
                enter(replaced(module, "_get_value", lambda _: 1.0))
        enter(_fused_attention(device))
        if config.kernels == "liger":
            enter(_no_triton())
        yield


@contextmanager
def _no_triton() -> Iterator[None]:
    """Triton's kernels do nothing: they allocate nothing either."""
    from triton.runtime import autotuner, jit

    with (
        replaced(jit.JITFunction, "run", lambda *_, **__: None),
        replaced(autotuner.Autotuner, "run", lambda *_, **__: None),
    ):
        yield


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """CUDA's list of fp32 operators on the CPU's autocast key."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in _FP32_OPERATORS:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _in_fp32(operator), "AutocastCPU")
        for name in _FP32_RESULTS:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _to_fp32(operator), "AutocastCPU")
        yield
    finally:
        library._destroy()


def _to_fp32(operator: Any) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    place = next(i for i, argument in enumerate(operator._schema.arguments) if argument.name == "dtype")
    by_name = operator._schema.arguments[place].kwarg_only

    def run(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("dtype") if by_name else (args[place] if len(args) > place else kwargs.get("dtype"))
        if given is None and args[0].is_floating_point():
            args, kwargs = (args if by_name else args[:place]), {**kwargs, "dtype": torch.float32}
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*args, **kwargs)

    return run


def _in_fp32(operator: Any) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def upcast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.float()
        return value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*map(upcast, args), **{name: upcast(value) for name, value in kwargs.items()})

    return run


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: A002
    """CUDA's fused dropout, which keeps a boolean mask; the CPU's keeps a float one."""
    del inplace
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _packed_indices(packing: bool) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """Which sample of a packed row each token belongs to, without looking at the positions."""

    def indices(position_ids: torch.Tensor) -> torch.Tensor | None:
        first = position_ids[:, :1] - 1
        packed = (torch.diff(position_ids, prepend=first, dim=-1) != 1).cumsum(-1)
        return packed if packing else None

    return indices


@contextmanager
def _fused_attention(device: Device) -> Iterator[None]:
    """flash-attention 2 through torch's own copy of its kernels, which allocate the same."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = ScaledDotProduct(device)

    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        causal = getattr(module, "is_causal", True)
        if mask is not None:
            query, key, value = (_unpadded(tensor) for tensor in (query, key, value))
        out = attention.flash(query, key, value, dropout, causal, scaling).transpose(1, 2)
        return (_unpadded(out) if mask is not None else out), None

    # The registry's own entry is a class attribute; a local one hides it.
    known = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = known.get("flash_attention_2")
    known["flash_attention_2"] = forward
    try:
        yield
    finally:
        if before is None:
            del known["flash_attention_2"]
        else:
            known["flash_attention_2"] = before


def _unpadded(tensor: torch.Tensor) -> torch.Tensor:
    """Rows gathered out of, or scattered back into, the padded batch: a copy."""
    return tensor.clone(memory_format=torch.contiguous_format)
