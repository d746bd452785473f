"""The allocations of loading a model: weights in the order of its modules, then adapters.

What is freed on the way leaves holes between what stays, which only smaller tensors fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from ftplan.estimators.blocks import layer_tensors, tensors
from ftplan.estimators.sharding import offloads_parameters
from ftplan.estimators.tape.build import targets_of
from ftplan.estimators.tape.log import Log
from ftplan.estimators.workload import FP32, Workload
from ftplan.profiles.schema import LayerProfile, ModelProfile
from ftplan.units import ceil_div

BLOCK = 64
NESTED_BLOCK = 256
"""Elements that share a scale in 4-bit, and scales that share one in double quantization (bitsandbytes)."""


def load(log: Log, work: Workload, *, builds_on_device: bool = False) -> None:
    """Load weights and adapters, sharded where ranks share them.

    ``builds_on_device``: the whole model comes in 16 bit, and is freed once all of it is packed or sharded, instead of
    matrix by matrix or layer by layer.
    """
    if work.is_fsdp and not work.quantized:
        _sharded(log, work, builds_on_device=builds_on_device)
        return
    waiting = []
    for elements, packs in tensors(work.model):
        if packs and work.quantized:
            unpacked = log.allocate(elements * work.compute_bytes)
            if builds_on_device:
                waiting.append((elements, unpacked))
            else:
                _pack(log, elements, work)
                log.free([unpacked])
        else:
            log.allocate(ceil_div(elements * _element(work), work.parameter_shards))
    for elements, _ in waiting:
        _pack(log, elements, work)
    log.free([unpacked for _, unpacked in waiting])
    if work.config.trains_adapters:
        log.allocate_all(ceil_div(each * work.trainable_bytes, work.parameter_shards) for each in trainables(work))


def trainables(work: Workload) -> Sequence[int]:
    """Elements of every tensor that trains."""
    if work.trains_all:
        return [elements for elements, _ in tensors(work.model)]
    return [each for layer in work.model.layers for each in adapters(work.model, layer, *_adapted(work))]


def parameters(work: Workload, layer: LayerProfile) -> Iterator[tuple[int, bool, bool]]:
    """(elements, packed in 4-bit, trains) of every parameter of a layer, adapters last."""
    for elements, packs in layer_tensors(layer):
        yield elements, packs and work.quantized, work.trains_all
    if work.config.trains_adapters:
        for elements in adapters(work.model, layer, *_adapted(work)):
            yield elements, False, True


@lru_cache(maxsize=256)
def adapters(model: ModelProfile, layer: LayerProfile, targets: str, rank: int) -> tuple[int, ...]:
    """Elements of A and B of every adapter of a layer."""
    adapted = targets_of(model.model_type, layer, targets, rank)
    found: list[int] = []
    for linear in layer.linears:
        if linear.path in adapted.modules:
            found += [rank * linear.in_features, rank * linear.out_features]
    for _, elements in adapted.experts:
        found += [elements // 2, elements - elements // 2]
    return tuple(found)


def _adapted(work: Workload) -> tuple[str, int]:
    return work.config.lora_targets, work.config.lora_rank


def _element(work: Workload) -> int:
    return work.trainable_bytes if work.trains_all else work.unquantized_bytes


def _pack(log: Log, elements: int, work: Workload) -> None:
    """A matrix in 4 bit: two elements a byte, and a scale a block; double quantization packs those to 8 bits.

    bitsandbytes functional.quantize_4bit: fp32 scales less their mean are quantized, with fp32 scales of their own.
    """
    blocks = ceil_div(elements, BLOCK)
    log.allocate(ceil_div(elements, 2 * work.parameter_shards))
    scales = log.allocate(blocks * FP32)
    if work.config.double_quantization:
        log.allocate(FP32)
        centred = log.allocate(blocks * FP32)
        log.allocate_all([blocks, ceil_div(blocks, NESTED_BLOCK) * FP32, FP32])
        log.free([centred, scales])


def _sharded(log: Log, work: Workload, *, builds_on_device: bool) -> None:
    """FSDP2: a layer at a time comes whole, in the dtype it trains in, and is freed when it is sharded; then the rest.

    torch/distributed/fsdp/_fully_shard/_fsdp_param.py, _init_sharded_param. Offloaded shards go on to the host.
    """
    model = work.model
    groups = [list(parameters(work, layer)) for layer in model.layers]
    groups.append([(model.embedding_params, False, work.trains_all)] * (1 if model.tied else 2))
    sizes = [
        [elements * (work.trainable_bytes if trains else _element(work)) for elements, _, trains in group]
        for group in groups
    ]
    if builds_on_device:
        sizes = [[each for group in sizes for each in group]]
    for group in sizes:
        whole = log.allocate_all(group)
        for size in group:
            shard = log.allocate(ceil_div(size, work.parameter_shards))
            if offloads_parameters(work):
                log.free([shard])
        log.free(whole)
