"""What offload holds in a host's RAM for one rank: pinned copies, optimizer states, and what a host optimizer makes.

torch pins memory in powers of two (CachingHostAllocator.cpp), so that what is pinned tensor by tensor takes up to twice
its size. Read off the resident memory of six runs on an H100 while they ran (benchmarks/data/host.jsonl), and compared
with five on two H200.

DeepSpeed 0.19.8: ZeRO-1 and 2 (runtime/zero/stage_1_and_2.py) pin an fp32 partition of the weights and one of the
gradients, and the 16-bit gradients on their way; ZeRO-3 (stage3.py) pins every 16-bit shard and both fp32 partitions,
and keeps flat 16-bit weights and gradients beside them. FSDP2 (torch/distributed/fsdp/_fully_shard/_fsdp_param.py) pins
every shard and every shard's gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ftplan.estimators import sharding, states
from ftplan.estimators.tape.loading import adapted, layer_parameters
from ftplan.estimators.workload import FP32, Workload
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Phase, Term
from ftplan.units import ceil_div

SOURCE: Final = "benchmarks/data/host.jsonl; torch CachingHostAllocator, deepspeed 0.19.8"
MOMENTS: Final = 2 * FP32
"""Bytes of AdamW's two states for each element."""


def offload_terms(work: Workload) -> list[Term]:
    """The terms of one rank; none where nothing is offloaded."""
    if not sharding.offloads_optimizer(work):
        return _paged(work)
    trained = work.sharded(work.updated, work.optimizer_shards)
    found = {
        ("pinned weights and gradients", tuple(Phase), "shards, rounded up to powers of two"): _pinned(work, trained),
        ("offloaded states", states.AFTER_LOAD, f"states of {work.config.optimizer}"): _moments(work, trained),
        ("host optimizer", (Phase.OPTIMIZER,), "roots and updates of one tensor"): _temporaries(work, trained),
        ("DeepSpeed", tuple(Phase), "its own buffers on the host"): _deepspeed(work),
    }
    return [Term(name, size, alive, reason, SOURCE) for (name, alive, reason), size in found.items() if size]


def _paged(work: Workload) -> list[Term]:
    """Paged states live on the host when the card is full (bitsandbytes)."""
    if not states.optimizer_cost(work.config.optimizer).paged:
        return []
    size = states.optimizer_states(work)
    return [Term("offloaded states", size, states.AFTER_LOAD, "paged optimizer states", "bitsandbytes")]


def pinned(size: int) -> int:
    """Bytes that pinning ``size`` takes."""
    return 1 << (size - 1).bit_length() if size > 1 else size


def _pinned(work: Workload, trained: int) -> int:
    if work.is_fsdp:
        return _shards(work) + _shards_of_gradients(work)
    partitions = 2 * pinned(FP32 * trained)
    if work.zero_stage < 3:
        return partitions + pinned(work.compute_bytes * trained)
    flat = 2 * work.compute_bytes * trained
    return partitions + flat + (_shards(work) if sharding.offloads_parameters(work) else 0)


def _moments(work: Workload, trained: int) -> int:
    return MOMENTS * trained if work.zero_stage else states.optimizer_states(work)


def _temporaries(work: Workload, trained: int) -> int:
    """torch's AdamW makes two tensors like the one it updates: all of a partition under ZeRO, a shard under FSDP2.

    DeepSpeed's own CPU Adam works in place.
    """
    if work.zero_stage:
        return 0 if work.stack.host_adam == "deepspeed" else 2 * FP32 * trained
    return 2 * work.trainable_bytes * ceil_div(states.largest_trainable(work), work.parameter_shards)


def _deepspeed(work: Workload) -> int:
    if not work.zero_stage or (work.zero_stage < 3 and work.config.trains_adapters):
        return 0
    return int(runtime_figure("deepspeed_offload_host_bytes").value)


def _shards(work: Workload) -> int:
    kept = work.trainable_bytes if work.trains_all else work.unquantized_bytes
    return _sum_pinned(work, kept if work.is_fsdp else work.compute_bytes, gradients=False)


def _shards_of_gradients(work: Workload) -> int:
    return _sum_pinned(work, work.trainable_bytes, gradients=True)


def _sum_pinned(work: Workload, element: int, *, gradients: bool) -> int:
    targets, rank = adapted(work.config)
    elements = element, work.trainable_bytes
    shards = work.parameter_shards
    return _pinned_by_tensor(work.model, targets, rank, elements, shards, quantized=work.quantized, gradients=gradients)


@lru_cache(maxsize=1024)
def _pinned_by_tensor(
    model: ModelProfile,
    targets: str,
    rank: int,
    elements: tuple[int, int],
    shards: int,
    *,
    quantized: bool,
    gradients: bool,
) -> int:
    """Bytes of every shard, pinned one by one; of ``gradients`` only those of what trains.

    ``elements`` are bytes of one that is frozen, and of one that trains.
    """
    total = 0
    for group in model.groups:
        for count, packed, trains in layer_parameters(model, group.layer, targets, rank, quantized=quantized):
            if trains or not gradients:
                size = ceil_div(count, 2) if packed else count * elements[trains]
                total += group.count * pinned(ceil_div(size, shards))
    if not rank or not gradients:
        outside = ceil_div(model.embedding_params * elements[not rank], shards)
        total += (1 if model.tied else 2) * pinned(outside)
    return total
