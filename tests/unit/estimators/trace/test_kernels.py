"""Scratch memory of CUDA kernels: figures are of the allocator's history of real steps on an H100, torch 2.11."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ftplan.estimators.trace import kernels
from ftplan.estimators.trace.attention import ScaledDotProduct
from ftplan.estimators.trace.kernels import Device

HOPPER = Device()
AMPERE = Device(capability=(8, 0), multiprocessors=108)
aten = torch.ops.aten


@pytest.mark.parametrize(
    ("query", "key", "expected"),
    [
        ((2, 32, 1024, 64), (2, 8, 1024, 64), 33_816_832),
        ((2, 32, 1024, 80), (2, 32, 1024, 80), 21_233_920),
        ((2, 8, 1024, 256), (2, 1, 1024, 256), 33_620_224),
        ((2, 16, 1024, 64), (2, 16, 1024, 64), 8_519_936),
    ],
)
def test_cudnn_attention_backward(query, key, expected):
    with FakeTensorMode():
        tensors = [torch.empty(shape, dtype=torch.bfloat16) for shape in (query, query, key)]
        backward = aten._scaled_dot_product_cudnn_attention_backward.default
        assert sum(kernels.scratch(backward, tensors, {}, None, HOPPER)) == expected


def attention(device: Device, *, heads=8, keys=8, dtype=torch.bfloat16, mask=False, gqa=False) -> set[str]:
    """The attention operators that run."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.__name__)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Names():
        query = torch.empty((2, heads, 64, 64), dtype=dtype, requires_grad=True)
        key = torch.empty((2, keys, 64, 64), dtype=dtype)
        bias = torch.zeros((2, 1, 64, 64), dtype=torch.bool) if mask else None
        out = ScaledDotProduct(device)(query, key, key, bias, is_causal=not mask, enable_gqa=gqa)
        assert out.shape == query.shape
    return {name for name in seen if "attention" in name or "softmax" in name}


def test_the_kernel_of_each_card_and_case():
    assert attention(HOPPER) == {"_scaled_dot_product_cudnn_attention.default"}
    assert attention(HOPPER, keys=2, gqa=True) == {"_scaled_dot_product_cudnn_attention.default"}
    assert attention(AMPERE) == {"_scaled_dot_product_flash_attention.default"}
    assert attention(AMPERE, mask=True) == {"_scaled_dot_product_efficient_attention.default"}
    assert attention(HOPPER, dtype=torch.float32) == {"_scaled_dot_product_efficient_attention.default"}
    assert attention(HOPPER, dtype=torch.float32, keys=2, gqa=True) == {"_safe_softmax.default"}
    assert attention(Device(capability=(7, 5)), dtype=torch.float16) == {
        "_scaled_dot_product_efficient_attention.default"
    }


def test_work_of_a_matrix_product():
    with FakeTensorMode():
        left, right = torch.empty((4, 8), dtype=torch.bfloat16), torch.empty((8, 16), dtype=torch.bfloat16)
        cost = kernels.cost(aten.mm.default, (left, right), left @ right)
    assert dict(cost.matrix_flops) == {"bfloat16": 2 * 4 * 8 * 16}
    assert cost.bytes_moved == 2 * (32 + 128 + 64)
    assert cost.kernels == 1


def test_views_cost_nothing():
    with FakeTensorMode():
        tensor = torch.empty((4, 8))
        assert kernels.cost(aten.t.default, (tensor,), tensor.t()).kernels == 0
