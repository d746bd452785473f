"""Which attention kernel a CUDA device takes, on fake tensors: the operators are the real ones, with their outputs."""

from __future__ import annotations

from typing import Final

import torch

from ftplan.estimators.trace.kernels import Device

_HALVES: Final = (torch.bfloat16, torch.float16)
_AUTOCAST: Final = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_aten = torch.ops.aten


class ScaledDotProduct:
    """``torch.nn.functional.scaled_dot_product_attention`` as ``device`` would run it.

    The order and the conditions are those of ATen/native/transformers/cuda/sdp_utils.cpp: cuDNN where it is preferred,
    flash, memory-efficient, and else plain matrix products with the scores in fp32.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """The attention's output, [batch, heads, length, width]."""
        query, key, value = (_autocast(tensor) for tensor in (query, key, value))
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return self._choose(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    def _choose(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> torch.Tensor:
        half = query.dtype in _HALVES
        width = query.shape[-1]
        grouped = query.shape[1] != key.shape[1]
        shaped = query.dim() == 4 and (not grouped or enable_gqa) and width == value.shape[-1]
        if shaped and half and self._device.prefers_cudnn_attention and width % 8 == 0 and width <= 256:
            mask = None if attn_mask is None else _mask(attn_mask, query)
            return _aten._scaled_dot_product_cudnn_attention(
                query,
                key,
                value,
                mask,
                query.requires_grad or key.requires_grad,
                dropout_p,
                is_causal,
                False,
                scale=scale,
            )[0]
        flash = self._device.capability >= (8, 0) and half and width <= 256
        if query.dim() == 4 and (not grouped or enable_gqa) and flash and attn_mask is None:
            return self.flash(query, key, value, dropout_p, is_causal, scale)
        if query.dim() == 4 and not grouped and (half or query.dtype == torch.float32):
            mask = None if attn_mask is None else _mask(attn_mask, query)
            return _aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, query.requires_grad or key.requires_grad, dropout_p, is_causal, scale=scale
            )[0]
        return _aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]

    def flash(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dropout: float,
        causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        """The flash kernel, which pads heads to a multiple of 8 columns (transformers/attention.cpp)."""
        width = query.shape[-1]
        if width % 8 == 0 and value.shape[-1] == width:
            return _aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
        padding = -width % 8
        query, key = (torch.nn.functional.pad(tensor, (0, padding)) for tensor in (query, key))
        padded = torch.nn.functional.pad(value, (0, query.shape[-1] - value.shape[-1]))
        scale = width**-0.5 if scale is None else scale
        out = _aten._scaled_dot_product_flash_attention(query, key, padded, dropout, causal, False, scale=scale)[0]
        return out[..., : value.shape[-1]]


def _mask(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """A boolean mask becomes an additive one of the query's dtype (transformers/attention.cpp, convert_boolean)."""
    if mask.dtype != torch.bool:
        return mask
    zero, lowest = (torch.full((), value, dtype=query.dtype) for value in (0.0, float("-inf")))
    return torch.where(mask, zero, lowest)


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """CUDA's autocast list has attention among the lower precision operators."""
    if torch.is_autocast_enabled("cpu") and tensor.is_floating_point():
        return tensor.to(torch.get_autocast_dtype("cpu"))
    return tensor
