"""Legality: small rules, each a function of a configuration that returns a typed rejection or None.

No rule looks at how the batch is split, so that one answer is a family's. Memory is a rule like the others, but needs
the estimate; the search applies it last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from ftplan.estimators.params import expert_targets
from ftplan.estimators.prompts import unsupported
from ftplan.profiles.device_schema import Cluster, GpuProfile
from ftplan.profiles.kernels import liger
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.stacks import load_stack
from ftplan.results import Estimate, Rejection
from ftplan.spec import PlanRequest, RunConfig

FSDP: Final = ("fsdp2", "fsdp2-grad-op", "hsdp")

Rule = Callable[[RunConfig, ModelProfile, Cluster], Rejection | None]


def needs_bf16(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """bf16 is native from compute capability 8.0 on."""
    lacking = [gpu.name for gpu in cluster.gpus if not gpu.bf16]
    if "bf16" not in (config.precision, config.weights_dtype) or not lacking:
        return None
    return Rejection(
        "needs-bf16",
        f"{lacking[0]} has no bf16 arithmetic",
        hint="use fp16",
        source="CUDA programming guide, compute capability 8.0",
    )


def trains_in_fp16(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """torch's gradient scaler refuses fp16 gradients, so fp16 weights cannot train unless something casts them."""
    makes_fp32 = config.sharding.startswith(("zero", "fsdp", "hsdp")) and config.precision != "none"
    makes_fp32 = makes_fp32 or load_stack(config.stack).upcasts(config)
    trains_fp16 = not config.trains_adapters and config.weights_dtype == "fp16" and not makes_fp32
    if not trains_fp16:
        return None
    return Rejection(
        "fp16-weights",
        "fp16 weights cannot be trained: the gradient scaler refuses fp16 gradients",
        hint="load fp32 weights with fp16 autocast, or use LoRA",
        source="torch/amp/grad_scaler.py, _unscale_grads_",
    )


def adapters_train_in_fp16(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """torch's gradient scaler refuses fp16 gradients, and has no kernel for those in bf16 (2.11, on an H100)."""
    if config.precision != "fp16" or not config.trains_adapters or config.adapter_dtype == "fp32":
        return None
    return Rejection(
        "fp16-adapters",
        f"{config.adapter_dtype} adapters cannot train with fp16: the gradient scaler takes gradients in fp32 only",
        hint="fp32 adapters, or bf16 precision where the cards have it",
        source="torch/amp/grad_scaler.py, _unscale_grads_",
    )


def attention_exists(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """The attention kernel must exist for the architecture and the card."""
    supports = model.layers[0].attention.supports
    if config.attention not in supports:
        return Rejection(
            "attention-kernel",
            f"{model.architecture} has no {config.attention} attention",
            hint="use " + " or ".join(supports),
            source="transformers' modelling code",
        )
    lacking = [gpu.name for gpu in cluster.gpus if not gpu.flash_attention_2]
    if config.attention == "flash_attention_2" and lacking:
        return Rejection(
            "attention-kernel",
            f"flash attention 2 does not run on {lacking[0]}",
            hint="use sdpa",
            source="flash-attention README: Ampere, Ada or Hopper",
        )
    return None


def sharding_has_ranks(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """HSDP needs several nodes of several cards, FSDP2 several cards."""
    nodes, per_node = len(cluster.nodes), len(cluster.nodes[0].gpus)
    if config.sharding == "hsdp" and (nodes < 2 or per_node < 2):
        return Rejection(
            "hsdp-needs-nodes",
            "HSDP shards inside a node and replicates across nodes: it needs two nodes of two cards",
            hint="use fsdp2",
            source="torch.distributed.fsdp, HYBRID_SHARD",
        )
    if config.sharding in ("fsdp2", "fsdp2-grad-op") and cluster.world_size == 1:
        return Rejection(
            "fsdp-one-card",
            "FSDP2 on one card keeps whole parameters on it, offloaded or not: more than is told here",
            hint="use zero2 or zero3 to offload from one card",
            source="benchmarks/data/host.jsonl: 5.6 GiB of Llama-3.2-1B, full, offloaded",
        )
    return None


def offload_is_offered(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """Offload belongs to DeepSpeed and FSDP2; parameters move only where they are sharded."""
    if config.offload == "none":
        return None
    if config.sharding in ("none", "ddp"):
        return Rejection(
            "offload", "offload needs DeepSpeed or FSDP2", hint="use zero2, zero3 or fsdp2", source="accelerate"
        )
    if config.sharding in FSDP and config.offload == "optimizer":
        return Rejection(
            "offload",
            "FSDP2 offloads parameters, gradients and optimizer states together",
            hint="use optimizer+params",
            source="torch.distributed.fsdp.CPUOffloadPolicy",
        )
    if config.offload == "optimizer+params" and config.sharding in ("zero1", "zero2"):
        return Rejection(
            "offload",
            f"{config.sharding} keeps whole parameters on the device",
            hint="use zero3 to offload parameters",
            source="deepspeed zero config, offload_param",
        )
    return None


def optimizer_takes_shards(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """bitsandbytes' optimizers update plain CUDA tensors: no DTensor shards, nothing on the host."""
    is_bnb = _is_bitsandbytes(config)
    sharded = config.sharding in FSDP
    if config.optimizer == "adafactor" and sharded:
        return Rejection(
            "optimizer-shards",
            "transformers' Adafactor mixes plain tensors with FSDP2's shards, and torch refuses that",
            hint="use adamw_torch_fused, or zero2 or zero3",
            source="transformers optimization.py, Adafactor.step: its trace ends in torch's error",
        )
    if not is_bnb or not (sharded or config.offload != "none"):
        return None
    return Rejection(
        "optimizer-shards",
        f"{config.optimizer} updates whole tensors on the device",
        hint="use adamw_torch_fused, or no sharding of parameters",
        source="bitsandbytes optim/optimizer.py",
    )


def quantization_runs(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """Planned 4-bit runs need a GPU, and a sharding that can split or replicate packed weights."""
    if config.quantization == "none":
        return None
    if cluster.gpus[0].kind == "cpu":
        return Rejection(
            "quantization", "4-bit training on a CPU is a test, not a plan", hint="use lora", source="bitsandbytes"
        )
    if config.sharding == "zero3":
        return Rejection(
            "quantization",
            "ZeRO-3 partitions parameters as they are created, before 4-bit packing",
            hint="use fsdp2, which shards packed weights stored as bf16",
            source="transformers integrations/deepspeed.py; peft's FSDP-QLoRA guide",
        )
    return None


def liger_has_kernels(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """Liger replaces modules of the architectures that it knows, on cards that Triton compiles for."""
    if config.kernels != "liger":
        return None
    known = liger()
    if model.model_type not in known.model_types:
        return Rejection(
            "liger-architecture",
            f"Liger {known.version} has no kernels for {model.model_type}, and training would silently go without",
            hint="use kernels none",
            source=known.source,
        )
    if config.sharding in FSDP and not model.tied:
        return Rejection(
            "liger-sharded-head",
            "Liger's loss reads the head's weight itself, which FSDP2 shards where it is not the embedding's",
            hint="use kernels none, or ddp, zero1 or zero2",
            source="benchmarks/data/regret.jsonl: torch refuses to mix plain tensors and shards (Qwen2.5-7B, two H200)",
        )
    lacking = [gpu.name for gpu in cluster.gpus if _older(gpu, known.compute_capability)]
    if not lacking:
        return None
    return Rejection(
        "liger-card", f"Triton does not compile for {lacking[0]}", hint="use kernels none", source=known.source
    )


def _older(gpu: GpuProfile, capability: tuple[int, int]) -> bool:
    """Whether Triton cannot compile for ``gpu``: a CPU, or an NVIDIA card of an older generation."""
    return gpu.kind == "cpu" or (gpu.compute_capability is not None and gpu.compute_capability < capability)


def _is_bitsandbytes(config: RunConfig) -> bool:
    return config.optimizer.endswith("8bit") or config.optimizer.startswith("paged")


def expert_adapters_drop_nothing(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """peft folds adapters of fused experts into their weight and takes no dropout there."""
    if not config.trains_lora or not config.lora_dropout:
        return None
    if not any(expert_targets(group.layer, config) for group in model.groups):
        return None
    return Rejection(
        "expert-dropout",
        "adapters on fused experts take no dropout",
        hint="set lora dropout to 0, or target the attention's modules only",
        source="peft 0.21 tuners/lora/layer.py, ParamWrapper",
    )


def prompts_can_be_added(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """peft knows LLaMA-Adapter for some architectures, FSDP does not shard it, and its matrices multiply one dtype."""
    if not config.trains_prompts:
        return None
    reason = unsupported(model)
    if reason:
        return Rejection(
            "adapter-architecture",
            reason,
            hint="use --method lora",
            source="peft 0.21.2 tuners/adaption_prompt, config.py and layer.py",
        )
    if config.sharding in FSDP:
        return Rejection(
            "adapter-sharded",
            "LLaMA-Adapter is not supported with FSDP: llama-cookbook, which brought it, refuses the two together",
            hint="use ddp, zero1 or zero2: only the prompts train, so that there is little to shard",
            source="llama-cookbook 0.0.5.post1 utils/config_utils.py, generate_peft_config",
        )
    if config.sharding == "zero3":
        return Rejection(
            "adapter-sharded",
            "LLaMA-Adapter under ZeRO-3 is not modelled: its attention gathers the same weights twice in a pass",
            hint="use zero1 or zero2",
            source="peft 0.21.2 tuners/adaption_prompt/layer.py, AdaptedAttention.forward",
        )
    wanted = _prompt_dtype(config)
    converts = config.adapter_dtype == "fp32" and config.quantization != "none"  # a 4-bit layer takes any input
    if config.adapter_dtype != wanted and not converts:
        return Rejection(
            "adapter-dtype",
            f"without autocast {config.adapter_dtype} prompts do not multiply {wanted} values",
            hint=f"use --adapter-dtype {wanted}, or --precision bf16",
            source="peft 0.21.2 tuners/adaption_prompt/layer.py: torch.matmul and the projections take one dtype",
        )
    return None


def _prompt_dtype(config: RunConfig) -> str:
    """The dtype that prompts need: without autocast the weights', over 4-bit ones that of the hidden states."""
    if config.precision != "none":
        return config.adapter_dtype
    return "fp32" if config.prepare_kbit and config.quantization != "none" else config.weights_dtype


def deepspeed_is_on_gpu(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """CPU plans replicate: DeepSpeed and FSDP2 there are for tests."""
    if cluster.gpus[0].kind != "cpu" or config.sharding in ("none", "ddp"):
        return None
    return Rejection("cpu-sharding", "on CPUs every process holds the whole model", hint="use ddp", source="accelerate")


def positions_suffice(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """Learned positions end where their table ends."""
    learned = model.layers[0].attention.positions == "learned"
    if not learned or model.max_positions is None or config.seq_len <= model.max_positions:
        return None
    return Rejection(
        "positions",
        f"{model.id} has {model.max_positions} learned positions",
        hint=f"use a sequence length of at most {model.max_positions}",
        source="the model's config",
    )


RULES: Final[tuple[Rule, ...]] = (
    deepspeed_is_on_gpu,
    sharding_has_ranks,
    adapters_train_in_fp16,
    offload_is_offered,
    needs_bf16,
    trains_in_fp16,
    attention_exists,
    optimizer_takes_shards,
    quantization_runs,
    prompts_can_be_added,
    liger_has_kernels,
    expert_adapters_drop_nothing,
    positions_suffice,
)


def first_rejection(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Rejection | None:
    """The first rule that rejects ``config``, or None."""
    for rule in RULES:
        rejection = rule(config, model, cluster)
        if rejection is not None:
            return rejection
    return None


def needed_packages(config: RunConfig) -> tuple[str, ...]:
    """Packages that training ``config`` needs beside torch, transformers, peft and TRL."""
    needs = {
        "bitsandbytes": config.quantization != "none" or _is_bitsandbytes(config),
        "deepspeed": config.sharding.startswith("zero"),
        liger().package: config.kernels == "liger",
        "flash-attn": config.attention == "flash_attention_2",
    }
    return tuple(package for package, needed in needs.items() if needed)


def package_rejection(config: RunConfig, missing: Collection[str]) -> Rejection | None:
    """Whether a package is missing on the machine that trains."""
    lacking = next((package for package in needed_packages(config) if package in missing), None)
    if lacking is None:
        return None
    return Rejection(
        "missing-package",
        f"{lacking} is not installed on this machine",
        hint=f"pip install {lacking}",
        source="the packages of this Python environment",
    )


def format_rejection(config: RunConfig, request: PlanRequest) -> Rejection | None:
    """Whether the files of the tool that the plan is for cannot say it."""
    lost = next((name for name, values in request.not_written.items() if getattr(config, name) in values), None)
    if lost is None:
        return None
    return Rejection(
        "not-written",
        f"{request.written_for}'s files cannot say {lost} {getattr(config, lost)}",
        hint="choose another --format",
        source=f"ftplan.launcher.formats.{request.written_for}",
    )


def weights_rejection(held_bytes: int, offered_bytes: int) -> Rejection:
    """What stays on a card through the whole run is already too large for the smallest that takes part."""
    return Rejection(
        "memory",
        "does not fit: weights and optimizer states alone are too large",
        hint="4-bit weights, sharding, offload, or a larger card",
        needed_bytes=held_bytes,
        available_bytes=offered_bytes,
    )


def memory_rejection(estimate: Estimate, margin: float) -> Rejection | None:
    """Whether the worst rank and every host have the memory."""
    if estimate.fits:
        return None
    if not estimate.host.fits:
        return Rejection(
            "host-memory",
            f"host RAM is too small while in phase {estimate.host.needed_phase}",
            hint="a host with more RAM, fewer ranks on a host, or no offload",
            needed_bytes=estimate.host.needed_bytes,
            available_bytes=estimate.host.capacity_bytes,
        )
    return Rejection(
        "memory",
        f"does not fit: peaks in phase {estimate.peak_phase}",
        hint="a smaller micro-batch, checkpointing, sharding, or a larger card",
        needed_bytes=estimate.needed_bytes,
        available_bytes=round(estimate.capacity_bytes * (1 - margin)),
    )
