"""Buffers and gathered parameters that DDP, FSDP2 and DeepSpeed add to a rank, and gradients as they leave them.

P counts all parameters, T the trainable ones, W the ranks of a shard group, e the compute element. Read off the real
libraries under a fake process group (accelerate 1.15, deepspeed 0.19.8) and checked against two H200.
"""

from __future__ import annotations

from typing import Final

from ftplan.estimators.module_order import Fetching
from ftplan.estimators.params import expert_targets, layer_targets
from ftplan.estimators.prompts import prompt_tensors
from ftplan.estimators.states import (
    largest_trainable,
    optimizer_temporary,
    trainable_blocks,
    weight_bytes,
    whole_weight_bytes,
)
from ftplan.estimators.workload import Workload
from ftplan.profiles.model_schema import LayerProfile
from ftplan.units import DTYPE_BYTES, ceil_div

FP32: Final = 4


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


def reduce_bucket(work: Workload) -> int:
    """Elements of DeepSpeed's reduce_bucket_size; transformers makes "auto" H² (integrations/deepspeed.py)."""
    return work.config.zero_reduce_bucket or work.model.hidden_size**2


def zero_buffers(work: Workload) -> int:
    """DeepSpeed's buffers between steps.

    ZeRO-3: the reduce bucket, and one flat bf16 gradient partition, e T / W. With the optimizer offloaded only the
    bucket; stages 1 and 2 have a bf16 buffer of the largest trainable tensor then.
    """
    element = work.compute_bytes
    if work.zero_stage == 3:
        partition = 0 if offloads_optimizer(work) else ceil_div(work.trainable, work.world)
        return (reduce_bucket(work) + partition) * element
    if work.zero_stage and offloads_optimizer(work):
        return largest_trainable(work) * element
    return 0


def zero_buckets(work: Workload) -> int:
    """ZeRO-1 and 2's reduce bucket, two that take turns where reducing overlaps with the backward.

    Whole whatever trains: torch.empty(reduce_bucket_size) at the first gradient (stage_1_and_2.py, setup_buckets).
    """
    if work.zero_stage not in (1, 2):
        return 0
    return reduce_bucket(work) * work.compute_bytes * (2 if work.config.zero_overlap else 1)


def reduces_late(work: Workload) -> bool:
    """ZeRO-1 without overlap_comm: no gradient is copied before the backward has ended (reduce_gradients)."""
    return work.zero_stage == 1 and not work.config.zero_overlap


def zero_partition(work: Workload) -> int:
    """The partition of the gradients that ZeRO-1 and 2 make in the backward; accumulating, ZeRO-2 has it already.

    It is made as the first bucket is reduced: at the end where one takes all gradients, see `zero_reducing`. Of those
    that stage 1 accumulated what is in the bucket is gone by then.
    """
    if not _makes_partition(work) or _reduces_at_end(work):
        return 0
    gone = _copied(work) * work.gradient_bytes if _copied_from(work) else 0
    return max(0, _own_part(work) - gone)


def zero_reducing(work: Workload, in_backward: int, kept: int) -> int:
    """What reducing takes under ZeRO-1/2 beyond the ``in_backward`` bytes of the highest moment of the backward.

    A bucket with gradients of several ranks is copied into one tensor (allreduce_bucket): the first is full when so
    many gradients have come, and as large a part of what the layers ``kept`` is gone. Where nothing is reduced before
    the end the rank's partition is made there, too, beside gradients that wait for the bucket.
    """
    if work.zero_stage not in (1, 2) or work.world == 1:
        return 0
    bucket = min(reduce_bucket(work), work.updated)
    copy = bucket * work.gradient_bytes
    if not _reduces_at_end(work):
        gone = max(bucket / work.updated, 1 / work.world)
        return max(0, copy - int(gone * (kept + _copied_from(work))))
    made = _own_part(work) if _makes_partition(work) else 0
    return max(0, _waiting(work) + max(copy, made) - in_backward - _copied_from(work))


def zero_host_copies(work: Workload, in_backward: int) -> int:
    """What ZeRO-1/2 take beyond the ``in_backward`` bytes of the highest moment to move gradients to the host.

    The largest gradient, which the embedding's backward makes last, when no layer is there any more, is converted to
    fp32 and added up in another fp32 buffer (traced, and 5.32 GiB measured for Llama-3.2-1B on one card). It lies
    beside the bucket if it is too large for that; where nothing is reduced before, so do others.
    """
    if work.zero_stage not in (1, 2) or not offloads_optimizer(work):
        return 0
    largest = largest_trainable(work)
    beside = largest * work.compute_bytes if largest > reduce_bucket(work) else 0
    if reduces_late(work):
        beside = _waiting(work)
        in_backward += _copied_from(work)
    return max(0, largest * 2 * FP32 + beside - in_backward)


def _makes_partition(work: Workload) -> bool:
    if work.zero_stage not in (1, 2) or offloads_optimizer(work) or work.world == 1:
        return False
    return work.zero_stage == 1 or work.config.accumulation == 1


def _reduces_at_end(work: Workload) -> bool:
    return reduces_late(work) or work.updated <= reduce_bucket(work)


def _own_part(work: Workload) -> int:
    return ceil_div(work.updated, work.optimizer_shards) * work.gradient_bytes


def _copied_from(work: Workload) -> int:
    """Bytes of accumulated gradients, which are gone from where they lay when they are in a bucket."""
    return accumulated_gradients(work) if work.zero_stage == 1 else 0


def _waiting(work: Workload) -> int:
    """Bytes of the gradients that are not in the bucket as it is reduced first, at the end of the backward."""
    return (work.updated - _copied(work)) * work.gradient_bytes


def _copied(work: Workload) -> int:
    """Elements in the bucket as it is reduced first.

    How far it is full then is not known: at least to where the largest gradient would not fit.
    """
    bucket = reduce_bucket(work)
    return work.updated if work.updated <= bucket else max(0, bucket - largest_trainable(work))


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
    if not config.trains_lora:
        adapters = layer.prompt_tokens and sum(prompt_tensors(config, work.model.hidden_size))
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


def zero3_fetching(work: Workload, *, lingers: bool) -> Fetching:
    """What decides which parameters ZeRO-3 keeps whole."""
    config = work.config
    adapts = config.trains_adapters
    return Fetching(
        model=work.model,
        targets=config.lora_targets if config.trains_lora else "",
        rank=config.lora_rank if adapts else 0,
        element=work.compute_bytes,
        adapter_element=work.trainable_bytes,
        checkpointing=config.gradient_checkpointing,
        ranks=work.world,
        copies=offloads_parameters(work),
        holds_frozen=work.stack.holds_frozen(config),
        external_head=config.loss_path != "full",
        lingers=lingers,
        prefetch=config.zero_prefetch_bucket,
        persists=config.zero_persistence_threshold,
    )


def whole_before_sharding(work: Workload) -> int:
    """Bytes of a 4-bit model and its adapters on one rank beyond its shards, which offload sends to the host.

    bitsandbytes packs on the device, and accelerate has no low-memory loading for what it packed, so that every rank
    holds the whole model before FSDP2 shards it.
    """
    adapters = work.trainable * DTYPE_BYTES[work.config.adapter_dtype]
    shards = 0
    if not offloads_parameters(work):
        shards = weight_bytes(work) + work.sharded(work.trainable * work.trainable_bytes, work.parameter_shards)
    return max(0, whole_weight_bytes(work) + adapters - shards)


def gradients_at_step(work: Workload) -> int:
    """Gradients while the optimizer runs; DeepSpeed converts its partition to fp32 and keeps both.

    Stage 3 makes it flat first, which is freed before the optimizer's own temporaries come.
    """
    total = work.updated
    if offloads_optimizer(work) and (work.zero_stage or work.is_fsdp):
        return 0
    if work.zero_stage == 3:
        flat = ceil_div(total, work.world)
        return flat * FP32 + max(0, flat * work.compute_bytes - optimizer_temporary(work))
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
