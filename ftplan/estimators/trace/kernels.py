"""What CUDA kernels do that the same operation on fake CPU tensors does not tell: scratch memory, answers, work.

Each figure was read off the allocator's history of real steps on an H100 (torch 2.11) and agrees with the source named;
tests/unit/estimators/trace/test_kernels.py holds the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Final

import torch
from torch.utils._pytree import tree_leaves

from ftplan.estimators.reductions import reduction_scratch
from ftplan.estimators.trace.record import Cost
from ftplan.units import ceil_div

_aten = torch.ops.aten

ADD: Final = _aten.add.Tensor
INDEX: Final = _aten.index.Tensor
MATRIX_PRODUCTS: Final = frozenset(
    {
        _aten.mm.default,
        _aten.mm.out,
        _aten.addmm.default,
        _aten.addmm_.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
    }
)
LT_WORKSPACE_BYTES: Final = 1 << 20
"""cuBLASLt's workspace of a thread, which products with a bias use."""


def is_mask(indices: Any) -> bool:
    """Whether an index is one boolean mask over the first dimensions."""
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool


def with_bias(func: Any, args: Any) -> bool:
    """Whether a matrix product adds a bias vector, which cuBLASLt does in its epilogue."""
    return func is _aten.addmm.default and args[0].dim() == 1


SOLE_OWNER: Final = 2
"""Uses of a storage that only the gradient being summed holds: its tensor, and Python's own while we look."""

FP32: Final = 4
INT64: Final = 8
SEMAPHORE: Final = 4
_HALVES: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Device:
    """What kernels ask of the card: its compute capability, multiprocessors and the cuBLAS workspace of a thread."""

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    threads_per_multiprocessor: int = 2048
    workspace_bytes: int = 32 << 20

    @property
    def prefers_cudnn_attention(self) -> bool:
        """sm90 and sm100 with a current cuDNN (ATen/native/transformers/cuda/sdp_utils.cpp, priority_order)."""
        return self.capability in ((9, 0), (10, 0))


def answer(func: Any, args: Any) -> Any:
    """A value for what asks the data of a fake tensor, or None: any plausible number, no overflow, equal."""
    if func is _aten._local_scalar_dense.default:
        if args[0].dtype == torch.bool:
            return False
        return 1.0 if args[0].is_floating_point() else 1
    if func is torch.ops._c10d_functional.wait_tensor.default:  # gives what it waited for, on fakes another tensor
        return args[0]
    return True if func is _aten.equal.default else None


# ---------------------------------------------------------------------- scratch


def scratch(func: Any, args: Any, kwargs: Any, out: Any, device: Device) -> Sequence[int]:
    """Bytes of each buffer that the kernel of ``func`` holds while it runs, beside its inputs and outputs."""
    rule = _SCRATCH.get(func)
    return () if rule is None else rule(args, kwargs, out, device)


def before(func: Any, args: Any, kwargs: Any) -> Sequence[int]:
    """Bytes of each buffer that is made before the output: the weight and scales that a 4-bit product decompresses.

    bitsandbytes backends/cuda/ops.py, _dequant_linear_fallback: with more than 1536 rows always; with fewer some cards
    take a fused kernel without them, but it is counted all the same.
    """
    if func.__name__ != "gemm_4bit.default":
        return ()
    inputs, shape, blocksize = args[0], args[2], args[4]
    elements = prod(shape)
    scales = [FP32 * ceil_div(elements, blocksize)] * 2 if kwargs.get("absmax_8bit") is not None else []
    return (*scales, elements * inputs.element_size())


def _sum_scratch(args: Any, _: Any, out: Any, device: Device) -> Sequence[int]:
    """Sums over the leading dimensions, such as the gradient of a norm's weight or of a bias."""
    tensor = args[0]
    outputs = out.numel()
    if not tensor.is_contiguous() or not outputs or tensor.shape[-1:] != out.shape[-1:]:
        return ()
    return reduction_scratch(
        tensor.numel() // outputs,
        outputs,
        tensor.element_size(),
        device.multiprocessors,
        device.threads_per_multiprocessor,
    )


def _cudnn_backward(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """fp32 gradient of the query and row sums; keys' and values' gradients by query head where heads are grouped."""
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    size = FP32 * batch * heads * length * (width + 1) + 256
    if key.shape[1] != heads:
        size += 2 * query.element_size() * batch * heads * key.shape[2] * width
    return (size,)


def _cudnn_forward(*_: object) -> Sequence[int]:
    return (256,)


def _flash_backward(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """dq_accum and softmax_d in fp32, and expanded key and value gradients (flash_api.cpp, mha_bwd)."""
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    rounded = ceil_div(length, 128) * 128
    width = ceil_div(width, 32) * 32
    sizes = [FP32 * batch * heads * rounded, FP32 * batch * heads * rounded * width]
    if key.shape[1] != heads:
        sizes += [query.element_size() * batch * heads * key.shape[2] * width] * 2
    return sizes


def _efficient_backward(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """delta, and fp32 accumulators of the query's gradient for half precision (mem_eff_attention/kernel_backward.h)."""
    query = args[1]
    batch, heads, length, width = query.shape
    delta = FP32 * batch * heads * length
    return (delta, FP32 * batch * heads * length * width) if query.dtype in _HALVES else (delta,)


def _embedding_backward(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """Sorted indices and fp32 partial sums of rows, for more than 3072 indices (ATen/native/cuda/Embedding.cu)."""
    gradient, indices, rows = args[0], args[1], args[2]
    count = indices.numel()
    if count <= 3072:
        return ()
    segments = min(count, rows)
    partial = count // 10 + segments
    index = INT64 * count
    return (
        index,
        index,
        index,
        INT64 * segments,
        INT64 * segments,
        INT64 * partial,
        FP32 * partial * gradient.shape[-1],
    )


def _foreach_norm(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """A partial norm for each chunk of 65536 elements, as many as the largest tensor has (ForeachReduceOp)."""
    tensors = args[0]
    chunks = max(ceil_div(tensor.numel(), 65_536) for tensor in tensors)
    return (FP32 * len(tensors) * chunks,)


def _softmax_backward(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """The product of gradient and output (ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out)."""
    return (args[0].numel() * args[0].element_size(),)


def _safe_softmax(_: Any, __: Any, out: Any, ___: Device) -> Sequence[int]:
    """Which scores are minus infinity, one byte each (transformers/attention.cpp)."""
    return (out.numel(),)


def _sort(args: Any, _: Any, __: Any, ___: Device) -> Sequence[int]:
    """Radix sort's second buffers for keys and positions (cub::DeviceRadixSort)."""
    size = args[0].numel()
    return (size * (args[0].element_size() + INT64) + 20_000,)


def _grouped_mm(*_: object) -> Sequence[int]:
    """CUTLASS's problem sizes and pointers, and its workspace: read off the allocator's history."""
    return (960, 67_584)


_SCRATCH: Final[dict[Any, Callable[..., Sequence[int]]]] = {
    _aten.sum.dim_IntList: _sum_scratch,
    _aten.mean.dim: _sum_scratch,
    _aten._scaled_dot_product_cudnn_attention.default: _cudnn_forward,
    _aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    _aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    _aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    _aten.embedding_dense_backward.default: _embedding_backward,
    _aten._softmax_backward_data.default: _softmax_backward,
    _aten._safe_softmax.default: _safe_softmax,
    _aten._foreach_norm.Scalar: _foreach_norm,
    _aten.sort.default: _sort,
    _aten.sort.stable: _sort,
    _aten._grouped_mm.default: _grouped_mm,
}


# ---------------------------------------------------------------------- work


def cost(func: Any, args: Any, out: Any) -> Cost:
    """The work of one operation: matrix products' FLOPs by dtype, bytes read and written, one kernel.

    Views cost nothing. A causal attention counts half of its score matrix.
    """
    work = Cost()
    if _is_view(func):
        return work
    tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, torch.Tensor)]
    work.bytes_moved = float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    collective = _COLLECTIVES.get(func._schema.name)
    if collective is not None:
        work.sent_bytes[collective] = float(sum(tensor.numel() * tensor.element_size() for tensor in tensors[:1]))
        return work
    work.kernels = 1.0
    rule = _FLOPS.get(func)
    if rule is not None:
        work.matrix_flops[str(tensors[0].dtype).removeprefix("torch.")] = float(rule(args))
    return work


@cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _mm(args: Any) -> float:
    return float(2 * prod(args[0].shape) * args[1].shape[-1])


def _addmm(args: Any) -> float:
    return float(2 * prod(args[1].shape) * args[2].shape[-1])


def _attention(query: Any, key: Any, causal: bool, products: float) -> float:
    batch, heads, length, width = query.shape
    return float(products * 2 * batch * heads * length * key.shape[2] * width) * (0.5 if causal else 1.0)


_FLOPS: Final[dict[Any, Callable[[Any], float]]] = {
    _aten.mm.default: _mm,
    _aten.mm.out: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.addmm_.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten._grouped_mm.default: _mm,
    _aten._scaled_dot_product_cudnn_attention.default: lambda a: _attention(a[0], a[1], len(a) > 6 and a[6], 2),
    _aten._scaled_dot_product_flash_attention.default: lambda a: _attention(a[0], a[1], len(a) > 4 and a[4], 2),
    _aten._scaled_dot_product_efficient_attention.default: lambda a: _attention(a[0], a[1], len(a) > 6 and a[6], 2),
    _aten._scaled_dot_product_cudnn_attention_backward.default: lambda a: _attention(a[1], a[2], a[14], 5),
    _aten._scaled_dot_product_flash_attention_backward.default: lambda a: _attention(a[1], a[2], a[11], 5),
    _aten._scaled_dot_product_efficient_attention_backward.default: lambda a: _attention(
        a[1], a[2], len(a) > 11 and a[11], 5
    ),
}

_COLLECTIVES: Final = {
    "c10d::allreduce_": "all-reduce",
    "c10d::_allgather_base_": "all-gather",
    "c10d::allgather_": "all-gather",
    "c10d::_reduce_scatter_base_": "reduce-scatter",
    "c10d::broadcast_": "broadcast",
    "c10d::reduce_": "reduce",
    "c10d::allgather_into_tensor_coalesced_": "all-gather",
    "c10d::reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "_c10d_functional::all_reduce": "all-reduce",
}
