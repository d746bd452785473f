"""The allocations of loading a model: weights in the order of its modules, then adapters.

What is freed on the way leaves holes between what stays, which only smaller tensors fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from ftplan.estimators.blocks import layer_tensors, tensors
from ftplan.estimators.prompts import GATE
from ftplan.estimators.sharding import offloads_parameters
from ftplan.estimators.tape.build import targets_of
from ftplan.estimators.tape.log import Log
from ftplan.estimators.workload import FP32, Workload
from ftplan.profiles.model_schema import LayerProfile, ModelProfile
from ftplan.spec import RunConfig
from ftplan.units import ceil_div

BLOCK = 64
NESTED_BLOCK = 256
"""Elements that share a scale in 4-bit, and scales that share one in double quantization (bitsandbytes)."""


def load(log: Log, work: Workload, *, builds_on_device: bool = False) -> list[int]:
    """Load weights and adapters, sharded where ranks share them; returns the keys of those that train, on one rank.

    ``builds_on_device``: the whole model comes in 16 bit, and is freed once all of it is packed or sharded, instead of
    matrix by matrix or layer by layer.
    """
    if work.is_fsdp and not work.quantized:
        _sharded(log, work, builds_on_device=builds_on_device)
        return []
    shards = 1 if work.is_fsdp else work.parameter_shards
    held: list[list[_Held]] = []
    waiting: list[int] = []
    for group in _groups(work.model):
        held.append([])
        for elements, packs in group:
            if packs and work.quantized:
                unpacked = log.allocate(elements * work.compute_bytes)
                if not builds_on_device:
                    held[-1].append(_pack(log, elements, shards, work))
                    log.free([unpacked])
                else:
                    waiting.append(unpacked)
            else:
                held[-1].append(_place(log, elements * _element(work), shards, work))
    if builds_on_device and work.quantized:
        for group, kept in zip(_groups(work.model), held, strict=True):
            kept += [_pack(log, elements, shards, work) for elements, packs in group if packs]
        log.free(waiting)
    if work.config.trains_adapters:
        held.append([_place(log, each * work.trainable_bytes, shards, work) for each in trainables(work)])
    if work.is_fsdp:
        _shard_held(log, held, work)
        return []
    return [each.key for group in (held if work.trains_all else held[-1:]) for each in group]


class _Held(NamedTuple):
    """A tensor that loading leaves: its key in the log, and its bytes."""

    key: int
    size: int


def _place(log: Log, size: int, shards: int, work: Workload) -> _Held:
    """A tensor, or a rank's part of it; under ZeRO-3 it comes whole, and its part may belong on the host."""
    partitions = work.zero_stage == 3
    whole = [log.allocate(size)] if partitions else []
    size = ceil_div(size, shards)
    held = _Held(log.allocate(size), size)
    log.free(whole)
    if partitions and offloads_parameters(work):
        log.free([held.key])
    return held


def _groups(model: ModelProfile) -> list[list[tuple[int, bool]]]:
    """(elements, packed) of the embedding, of every layer, and of the head."""
    outside = [(model.embedding_params, False)]
    return [outside, *(list(layer_tensors(layer)) for layer in model.layers), [] if model.tied else outside]


def _shard_held(log: Log, held: list[list[_Held]], work: Workload) -> None:
    """FSDP2 shards what every rank holds whole, a group at a time; offloaded shards go on to the host."""
    for group in held:
        for each in group:
            shard = log.allocate(ceil_div(each.size, work.parameter_shards))
            if offloads_parameters(work):
                log.free([shard])
        log.free(each.key for each in group)


def trainables(work: Workload) -> Sequence[int]:
    """Elements of every tensor that trains."""
    if work.trains_all:
        return [elements for elements, _ in tensors(work.model)]
    return [each for layer in work.model.layers for each in adapters(work.model, layer, *adapted(work.config))]


def parameters(work: Workload, layer: LayerProfile) -> Iterator[tuple[int, bool, bool]]:
    """(elements, packed in 4-bit, trains) of every parameter of a layer, adapters last."""
    targets, rank = adapted(work.config)
    return layer_parameters(work.model, layer, targets, rank, quantized=work.quantized)


def layer_parameters(
    model: ModelProfile, layer: LayerProfile, targets: str, rank: int, *, quantized: bool
) -> Iterator[tuple[int, bool, bool]]:
    """The same without a workload; without adapters, of ``rank`` 0, every parameter trains."""
    for elements, packs in layer_tensors(layer):
        yield elements, packs and quantized, not rank
    if rank:
        for elements in adapters(model, layer, targets, rank):
            yield elements, False, True


@lru_cache(maxsize=256)
def adapters(model: ModelProfile, layer: LayerProfile, targets: str, rank: int) -> tuple[int, ...]:
    """Elements of A and B of every adapter of a layer, or of its prompt and gate."""
    if layer.prompt_tokens:
        return layer.prompt_tokens * model.hidden_size, GATE
    adapted = targets_of(model.model_type, layer, targets, rank)
    found: list[int] = []
    for linear in layer.linears:
        if linear.path in adapted.modules:
            found += [rank * linear.in_features, rank * linear.out_features]
    for _, elements in adapted.experts:
        found += [elements // 2, elements - elements // 2]
    return tuple(found)


def adapted(config: RunConfig) -> tuple[str, int]:
    """LoRA's targets and rank; no targets where only prompts train, and rank 0 where every weight does."""
    return config.lora_targets if config.trains_lora else "", config.lora_rank if config.trains_adapters else 0


def _element(work: Workload) -> int:
    return work.trainable_bytes if work.trains_all else work.unquantized_bytes


def _pack(log: Log, elements: int, shards: int, work: Workload) -> _Held:
    """A matrix in 4 bit: two elements a byte, and a scale a block; double quantization packs those to 8 bits.

    bitsandbytes functional.quantize_4bit: fp32 scales less their mean are quantized, with fp32 scales of their own.
    """
    blocks = ceil_div(elements, BLOCK)
    packed = _place(log, ceil_div(elements, 2), shards, work)
    scales = log.allocate(blocks * FP32)
    if work.config.double_quantization:
        log.allocate(FP32)
        centred = log.allocate(blocks * FP32)
        log.allocate_all([blocks, ceil_div(blocks, NESTED_BLOCK) * FP32, FP32])
        log.free([centred, scales])
    return packed


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
