"""Buffers and gathered parameters that DDP, FSDP2 and DeepSpeed add to a rank, and gradients as they leave them.

P counts all parameters, T the trainable ones, W the ranks of a shard group, e the compute element. Read off the real
libraries under a fake process group (accelerate 1.15, deepspeed 0.19.8) and checked against two H200.
"""

from __future__ import annotations

from typing import Final

from ftplan.estimators.params import expert_targets, layer_targets
from ftplan.estimators.states import largest_trainable, trainable_blocks, weight_bytes, whole_weight_bytes
from ftplan.estimators.workload import Workload
from ftplan.profiles.schema import LayerProfile
from ftplan.units import DTYPE_BYTES, ceil_div

FP32: Final = 4

ZERO3_MAX_LIVE: Final = 10**9
"""Elements that ZeRO-3 keeps gathered for reuse (stage3_max_live_parameters and stage3_max_reuse_distance)."""


def offloads_parameters(work: Workload) -> bool:
    """Whether parameters live on the host: asked for, or FSDP2, whose offload moves everything."""
    return work.config.offload == "optimizer+params" or (work.is_fsdp and work.config.offload != "none")


def offloads_optimizer(work: Workload) -> bool:
    """Whether optimizer states and the optimizer's step are on the host."""
    return work.config.offload != "none"


def ddp_buckets(work: Workload) -> int:
    """DDP copies every trainable gradient into buckets (gradient_as_bucket_view is off): one more gradient."""
    if work.config.sharding != "ddp":
        return 0
    return work.trainable * work.gradient_bytes


def zero_buffers(work: Workload) -> int:
    """DeepSpeed's buffers between steps.

    ZeRO-3: one flat bf16 gradient partition, e T / W. With the optimizer offloaded, a bf16 buffer of the largest
    trainable tensor instead.
    """
    element = work.compute_bytes
    if work.zero_stage and offloads_optimizer(work):
        return largest_trainable(work) * element if work.zero_stage < 3 else 0
    if work.zero_stage == 3:
        return ceil_div(work.trainable, work.world) * element
    return 0


def zero_buckets(work: Workload) -> int:
    """Reduce buckets of H² elements in the backward (transformers' "auto"): two (overlap) in ZeRO-1/2, one in 3."""
    if not work.zero_stage:
        return 0
    bucket = min(work.model.hidden_size**2, work.trainable)
    return bucket * work.compute_bytes * (1 if work.zero_stage == 3 else 2)


def zero_partition(work: Workload) -> int:
    """The partition of the gradients that ZeRO-1 and 2 make in the backward; accumulating, ZeRO-2 has it already."""
    if work.zero_stage not in (1, 2) or offloads_optimizer(work) or work.world == 1:
        return 0
    if work.zero_stage == 2 and work.config.accumulation > 1:
        return 0
    return ceil_div(work.updated, work.optimizer_shards) * work.gradient_bytes


def zero_host_copies(work: Workload, in_backward: int) -> int:
    """What ZeRO-1/2 take beyond the ``in_backward`` bytes of the highest moment to move gradients to the host.

    The largest gradient, which the embedding's backward makes last, when no layer is there any more, is converted to
    fp32 and added up in another fp32 buffer (traced, and 5.32 GiB measured for Llama-3.2-1B on one card).
    """
    if work.zero_stage not in (1, 2) or not offloads_optimizer(work):
        return 0
    return max(0, largest_trainable(work) * (2 * FP32 + work.compute_bytes) - in_backward)


def layer_weight_bytes(work: Workload) -> int:
    """Gathered weights of the largest layer, in the compute dtype or packed."""
    largest = max(group.layer.params for group in work.model.groups)
    return _gathered(largest, work)


def gathered_layer_bytes(work: Workload, layer: LayerProfile) -> int:
    """Whole parameters of one layer as FSDP2 gathers them, adapters included."""
    config = work.config
    packed = [each for each in layer.linears if work.quantized and each.is_linear and each.quantizable]
    half = sum(each.weight_params for each in packed)
    element = work.gathered_bytes
    adapters = sum(each.in_features + each.out_features for each in layer_targets(layer, config)) * config.lora_rank
    adapters += sum(each.params_per_rank for each in expert_targets(layer, config)) * config.lora_rank
    if not config.trains_adapters:
        adapters = 0
    own = work.compute_bytes if work.casts_parameters else work.trainable_bytes
    return half // 2 + (layer.params - half) * element + adapters * own


def tail_weight_bytes(work: Workload) -> int:
    """Gathered weights of FSDP2's last group: final norm and head, or the embedding where it is tied."""
    return work.model.embedding_params * work.compute_bytes


def _gathered(params: int, work: Workload) -> int:
    if not work.quantized:
        return params * work.compute_bytes
    total = sum(group.count * group.layer.params for group in work.model.groups)
    outside = work.model.total_params - total
    return (whole_weight_bytes(work) - outside * work.unquantized_bytes) * params // total


def gathered_in_layers(work: Workload) -> int:
    """Gathered parameters while layers run: FSDP2 this and the next layer with the last group; ZeRO-3 a cache."""
    if work.zero_stage == 3:
        return zero3_live(work)
    if work.config.sharding == "fsdp2-grad-op":
        return _gathered(work.model.total_params, work)
    if work.is_fsdp:
        return 2 * layer_weight_bytes(work) + tail_weight_bytes(work)
    return 0


def gathered_at_loss(work: Workload, *, backward: bool) -> int:
    """Gathered parameters at the loss: FSDP2's last group.

    In the forward the all-gather's output buffer still stands beside it, but where the loss runs in tiles: measured on
    two H200, 0.25 GiB less than with it for Qwen2.5-0.5B.
    """
    if work.zero_stage == 3 or work.config.sharding == "fsdp2-grad-op":
        return gathered_in_layers(work)
    if work.is_fsdp:
        buffered = not backward and work.config.loss_path == "full"
        return tail_weight_bytes(work) * (2 if buffered else 1)
    return 0


def zero3_live(work: Workload) -> int:
    """Parameters ZeRO-3 keeps gathered: the whole model up to the live limit."""
    whole = whole_weight_bytes(work) if work.quantized else work.model.total_params * work.compute_bytes
    return min(whole, ZERO3_MAX_LIVE * work.compute_bytes)


def whole_before_sharding(work: Workload) -> int:
    """Bytes of a 4-bit model and its adapters on one rank beyond its shards.

    bitsandbytes packs on the device, and accelerate has no low-memory loading for what it packed, so that every rank
    holds the whole model before FSDP2 shards it.
    """
    adapters = work.trainable * DTYPE_BYTES[work.config.adapter_dtype]
    shard = work.sharded(work.trainable * work.trainable_bytes, work.parameter_shards)
    return max(0, whole_weight_bytes(work) - weight_bytes(work) + adapters - shard)


def gradients_at_step(work: Workload) -> int:
    """Gradients while the optimizer runs; DeepSpeed converts its partition to fp32 and keeps both."""
    total = work.updated
    if offloads_optimizer(work) and (work.zero_stage or work.is_fsdp):
        return 0
    if work.zero_stage == 3:
        return ceil_div(total, work.world) * FP32
    if work.zero_stage:
        return ceil_div(total, work.world) * (work.gradient_bytes + FP32)
    blocks = trainable_blocks(work, work.gradient_bytes, work.gradient_shards)
    return ceil_div(total, work.gradient_shards) * work.gradient_bytes + blocks


def accumulated_gradients(work: Workload) -> int:
    """Gradients kept between micro-batches.

    Under FSDP2, Trainer accumulates without synchronising (accelerator.no_sync), so every rank keeps whole gradients in
    the reduce dtype, unless ``sync_each_batch`` is set.
    """
    if work.config.accumulation == 1:
        return 0
    total = work.updated
    if work.is_fsdp and not work.config.sync_each_batch:
        return total * work.compute_bytes
    if work.is_fsdp:
        return 0 if offloads_parameters(work) else ceil_div(total, work.gradient_shards) * work.gradient_bytes
    if work.zero_stage:
        on_host = offloads_optimizer(work) and work.zero_stage == 2  # stage 1 moves them once all are there
        return 0 if work.zero_stage == 3 or on_host else _partition(work)
    return total * work.gradient_bytes + trainable_blocks(work, work.gradient_bytes, 1)


def _partition(work: Workload) -> int:
    return ceil_div(work.updated, work.gradient_shards) * work.gradient_bytes
