"""What several devices of one machine have in common: the memory of their communicators, and the link between them.

Runs on every rank under torchrun; NCCL between GPUs, gloo between CPU processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final

import torch
from torch import distributed

from ftplan.launcher.probe.memory import beside_allocator_bytes, taken_bytes
from ftplan.launcher.probe.single import Figures, matrix_dtype, small_step
from ftplan.launcher.probe.timing import timed_seconds

REDUCED_BYTES: Final[Mapping[str, int]] = {"cuda": 2**28, "cpu": 2**25}
CALLS: Final = 15
"""All ranks make as many: none can decide by its own clock that it is enough."""

SMALL_ELEMENTS: Final = 2**10


def communicators(device: torch.device) -> Figures:
    """What a process group takes outside the caching allocator once it has reduced, gathered and scattered."""
    small_step(device, matrix_dtype(device))
    torch.cuda.synchronize()
    before = beside_allocator_bytes()
    join(device)
    _use_collectives(device)
    torch.cuda.synchronize()
    return {"nccl_bytes": int(_largest(taken_bytes(before, beside_allocator_bytes()), device))}


def device_link(device: torch.device) -> Figures:
    """Bus bandwidth of a large all-reduce: each rank sends and receives 2 (n - 1) / n times its size."""
    join(device)
    size = REDUCED_BYTES[device.type]
    values = torch.zeros(size, dtype=torch.uint8, device=device).view(torch.float32)
    seconds = [timed_seconds(lambda: distributed.all_reduce(values), device) for _ in range(CALLS)]
    ranks = distributed.get_world_size()
    slowest = _largest(median(seconds[CALLS // 3 :]), device)
    return {"link_bytes_per_second": 2 * (ranks - 1) / ranks * size / slowest, "ranks": ranks}


def join(device: torch.device) -> None:
    """Make the process group, if there is none yet."""
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """End the process group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def local_device(kind: str) -> torch.device:
    """The device of this rank, made the current one."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _use_collectives(device: torch.device) -> None:
    """A small and a large message of each kind: NCCL connects by what it is asked for."""
    ranks = distributed.get_world_size()
    for elements in (SMALL_ELEMENTS, REDUCED_BYTES["cuda"] // 4):
        whole = torch.zeros(elements // ranks * ranks, device=device)
        part = torch.zeros(elements // ranks, device=device)
        distributed.broadcast(whole, 0)
        distributed.all_reduce(whole)
        distributed.all_gather_into_tensor(whole, part)
        distributed.reduce_scatter_tensor(part, whole)


def _largest(value: float, device: torch.device) -> float:
    """The largest ``value`` of any rank."""
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return float(largest)


MEASURES: Final[Mapping[str, Callable[[torch.device], Figures]]] = {
    "communicators": communicators,
    "device link": device_link,
}
