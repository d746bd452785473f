"""What one device does: context, matrix rate, memory bandwidth, link to its host, time to launch.

Each part is a function of the device that returns figures as `ftplan.profiles.calibration.DeviceFigures` names them.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Final

import torch
from torch.nn import functional

from ftplan.launcher.probe.memory import beside_allocator_bytes, driver_used_bytes, resident_bytes, taken_bytes
from ftplan.launcher.probe.timing import median_seconds

Figures = dict[str, float | str]

STEADY_SECONDS: Final = 1.0
"""Each rate is held for this long, so that a boost clock does not decide it."""

MATRIX_SIZES: Final[Mapping[str, tuple[int, ...]]] = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}
COPY_BYTES: Final[Mapping[str, int]] = {"cuda": 2**30, "cpu": 2**28}
LARGEST_PART: Final = 8
"""No part takes more than one in this many of the free bytes."""

PINNED_BYTES: Final = 2**28
CHAIN: Final = 50
"""Blocks in the chain of tiny operations, of three each."""
CHAINS: Final = 30

TRAINING_LIBRARIES: Final = ("transformers", "datasets", "accelerate", "peft", "trl")


def context(device: torch.device) -> Figures:
    """What a process holds once kernels of every kind that training runs are loaded. Goes first: it happens once.

    Without a driver to ask what others hold, all that is in use counts: the device must be idle then.
    """
    if device.type == "cpu":
        return _resident()
    before = driver_used_bytes()
    small_step(device, matrix_dtype(device))
    torch.cuda.synchronize()
    after = driver_used_bytes()
    if before is None or after is None:
        return {"context_bytes": beside_allocator_bytes()}
    return {"context_bytes": taken_bytes(before + torch.cuda.memory_reserved(), after)}


def _resident() -> Figures:
    missing = [name for name in TRAINING_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"the process that trains needs {', '.join(missing)}, not installed here")
    for name in (*TRAINING_LIBRARIES, "trl.trainer.sft_trainer"):  # trl itself imports next to nothing
        importlib.import_module(name)
    small_step(torch.device("cpu"), torch.float32)
    return {"context_bytes": resident_bytes()}


def matrix_rate(device: torch.device) -> Figures:
    """FLOP/s of the fastest square product: 2 n^3 over its time."""
    dtype = matrix_dtype(device)
    return {
        "matrix_dtype": {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype],
        "matrix_flops_per_second": max(_product_rate(size, dtype, device) for size in MATRIX_SIZES[device.type]),
    }


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = median_seconds(lambda: torch.mm(left, right, out=out), device, least_seconds=STEADY_SECONDS)
    return 2 * size**3 / seconds


def memory_bandwidth(device: torch.device) -> Figures:
    """Bytes read and bytes written a second by a copy that no cache holds."""
    size = COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info()[0] // LARGEST_PART)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, least_seconds=STEADY_SECONDS)
    return {"memory_bytes_per_second": 2 * size / seconds}


def host_link(device: torch.device) -> Figures:
    """Bytes a second between pinned host memory and the device, one way at a time."""
    on_host = torch.ones(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    on_device = torch.empty(PINNED_BYTES, dtype=torch.uint8, device=device)

    def rate(target: torch.Tensor, source: torch.Tensor) -> float:
        copy = partial(target.copy_, source, non_blocking=True)
        return PINNED_BYTES / median_seconds(copy, device, least_seconds=STEADY_SECONDS / 2)

    return {
        "to_device_bytes_per_second": rate(on_device, on_host),
        "from_device_bytes_per_second": rate(on_host, on_device),
    }


def launch_time(device: torch.device) -> Figures:
    """Host seconds of an operation, forward and backward, in a chain of tiny ones through modules, as layers are."""
    modules = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(CHAIN)).to(device)
    start = torch.ones(8, 8, device=device)

    def chain() -> float:
        started = time.perf_counter()
        hidden = start
        for module in modules:
            hidden = hidden + functional.silu(module(hidden))
        hidden.sum().backward()
        return time.perf_counter() - started

    def settled() -> float:
        seconds = chain()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return seconds

    settled()
    return {"launch_seconds": median(settled() for _ in range(CHAINS)) / (3 * CHAIN)}


def small_step(device: torch.device, dtype: torch.dtype) -> None:
    """One step with the kinds of kernels that training runs: products, attention, norm, loss, fused Adam."""
    module = torch.nn.Linear(256, 256, device=device, dtype=dtype)
    optimizer = torch.optim.AdamW(module.parameters(), fused=device.type == "cuda")
    hidden = functional.layer_norm(module(torch.randn(2, 128, 256, device=device, dtype=dtype)), (256,))
    heads = hidden.view(2, 128, 4, 64).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    logits = mixed.transpose(1, 2).reshape(-1, 256).float()
    functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=device)).backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def matrix_dtype(device: torch.device) -> torch.dtype:
    """What plans train in: bf16 where the device has it, else fp16; fp32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


MEASURES: Final[Mapping[str, Callable[[torch.device], Figures]]] = {
    "context": context,
    "matrix rate": matrix_rate,
    "memory bandwidth": memory_bandwidth,
    "host link": host_link,
    "launch time": launch_time,
}
