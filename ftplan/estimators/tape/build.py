"""From a configuration to the moments of its step, once for each kind of configuration."""

from __future__ import annotations

from functools import lru_cache

from ftplan.estimators import sharding
from ftplan.estimators.tape.gathering import Groups
from ftplan.estimators.tape.machine import Reduction
from ftplan.estimators.tape.modules import Options, Targets
from ftplan.estimators.tape.moments import Moments, moments_of
from ftplan.estimators.tape.step import record
from ftplan.estimators.targets import expert_targets_named, layer_targets_named
from ftplan.estimators.workload import Workload, once
from ftplan.profiles.model_schema import LayerProfile, ModelProfile


def adapter_element(work: Workload) -> int:
    """Element of the adapters inside the forward: FSDP2's policy casts them to the compute dtype."""
    return work.compute_bytes if work.is_fsdp and work.casts_parameters else work.trainable_bytes


def options_of(work: Workload) -> Options:
    """What the programs need of a configuration."""
    config, model = work.config, work.model
    cast = work.casts_parameters
    gpu = work.cluster.gpus[0]
    return Options(
        compute=work.compute_bytes,
        autocast=work.compute_bytes if work.autocast else 0,
        weights=work.compute_bytes if cast else work.trainable_bytes if work.trains_all else work.frozen_bytes,
        unquantized=work.compute_bytes if cast else work.trainable_bytes if work.trains_all else work.unquantized_bytes,
        adapters=adapter_element(work),
        stream=work.stream_bytes,
        trains_all=work.trains_all,
        rank=config.lora_rank if config.trains_lora else 0,
        dropout=config.lora_dropout if config.trains_lora else 0.0,
        quantized=work.quantized,
        double_quantization=config.double_quantization,
        checkpointing=config.gradient_checkpointing,
        reentrant=work.stack.reenters(work.config),
        attention=config.attention,
        padding=config.padding,
        packing=config.packing,
        seq_len=config.seq_len if model.has_windows or config.trains_prompts else 0,
        several_samples=config.micro_batch > 1,
        scores_softcap=any(group.layer.attention.softcap for group in model.groups),
        attention_dropout=model.dropout.attention,
        hidden_dropout=model.dropout.hidden,
        embedding_dropout=model.dropout.embedding,
        inputs_require_gradients=config.gradient_checkpointing,
        loss_path=config.loss_path,
        loss_chunks=work.stack.loss_chunks if config.loss_path == "chunked" else 0,
        casts_outputs=work.stack.casts_outputs_to_fp32 and bool(work.autocast),
        accumulates=config.accumulation > 1,
        reduction=_reduction(work),
        groups=_groups(work) if work.is_fsdp else None,
        liger=config.kernels == "liger",
        cudnn=gpu.compute_capability in ((9, 0), (10, 0)),
        keeps_linear_inputs=work.zero_stage == 3,
    )


def _reduction(work: Workload) -> Reduction:
    """FSDP2 reduces a layer at a time, ZeRO-2 and 3 each tensor, into memory that a rank already has or the host's.

    ZeRO-1 keeps the gradients that are not of its own partition up to the step, where they are too large for a bucket,
    which else took them over: as large a part of each, in the mean.
    """
    element = 0 if sharding.offloads_parameters(work) or work.zero_stage else work.gradient_bytes
    if work.is_fsdp and (work.config.accumulation == 1 or work.config.sync_each_batch):
        tied = work.model.tied and work.trains_all
        return Reduction("part", work.gradient_shards, element, work.gathered_bytes, tied)
    if (
        work.zero_stage == 1
        and (work.world > 1 or sharding.offloads_optimizer(work))
        and work.config.accumulation == 1
        and work.config.zero_overlap
    ):
        shards = 1 if sharding.offloads_optimizer(work) else work.world / (work.world - 1)
        return Reduction("tensor", shards, work.gradient_bytes, above=sharding.reduce_bucket(work))
    if work.zero_stage >= 2:
        return Reduction("tensor", work.gradient_shards, element, work.compute_bytes)
    return Reduction()


def _groups(work: Workload) -> Groups:
    """Whole parameters of FSDP2's groups, in the dtype they are gathered in; adapters come with their layer."""
    model, config = work.model, work.config
    outer = sum(norm.params for norm in model.outer_norms[-1:]) + (model.vocab_size if model.head_bias else 0)
    element = work.gathered_bytes
    layers = tuple(sharding.gathered_layer_bytes(work, group.layer) for group in model.groups)
    inside = sum(group.count * group.layer.params for group in model.groups)
    merger = sum(count * each.params for count, each in model.vision.linears if count == 1) if model.vision else 0
    heads = model.embedding_params * (1 if model.tied else 2)
    rest = model.total_params - inside - outer - heads - (model.vision.params - merger if model.vision else 0)
    return Groups(
        embedding=0 if model.tied else model.embedding_params * element,
        tail=(model.embedding_params + outer) * element,
        rest=max(0, rest) * element,
        layers=layers,
        tied=model.tied,
        reshards=config.sharding != "fsdp2-grad-op",
    )


@once
def moments_for(work: Workload) -> Moments:
    """The moments of the step of ``work``."""
    targets = work.config.lora_targets if work.config.trains_lora else ""
    return _moments(work.model, options_of(work), targets)


@lru_cache(maxsize=4096)
def _moments(model: ModelProfile, options: Options, targets: str) -> Moments:
    kinds = {group.layer for group in model.groups}
    found = {layer: targets_of(model.model_type, layer, targets, options.rank) for layer in kinds}
    return moments_of(record(model, options, found))


def targets_of(model_type: str, layer: LayerProfile, targets: str, rank: int) -> Targets:
    """What LoRA of ``rank`` adapts in a layer of the family."""
    if not targets:
        return Targets(model_type)
    experts = tuple((each.weight.name, each.params_per_rank * rank) for each in expert_targets_named(layer, targets))
    return Targets(model_type, frozenset(each.path for each in layer_targets_named(layer, targets)), experts)
