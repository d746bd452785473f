"""A configuration in LLaMA-Factory's settings, with the command that starts it."""

from __future__ import annotations

from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import accelerate, deepspeed, trainer
from ftplan.launcher.formats.given import ACCELERATE_FILE, Emitted, Target
from ftplan.launcher.formats.llamafactory_rules import FSDP
from ftplan.spec import RunConfig

MAIN: Final = "train.yaml"
DEMO_DATASET: Final = "alpaca_en_demo"


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as LLaMA-Factory's settings."""
    main: dict[str, Any] = {
        "model_name_or_path": config.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if config.method == "full" else "lora",
        **(_adapter(config) if config.trains_adapters else {}),
        "dataset": target.dataset or DEMO_DATASET,
        "cutoff_len": config.seq_len,
        **_written_packing(config),
        "flash_attn": {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}[config.attention],
    }
    if not config.gradient_checkpointing:
        main["disable_gradient_checkpointing"] = True
    passed_on = trainer.arguments(config, target)
    for key in ("gradient_checkpointing", "use_liger_kernel"):
        passed_on.pop(key, None)
    main |= passed_on
    if config.kernels == "liger":
        main["enable_liger_kernel"] = True
    if config.precision == "none" and config.weights_dtype == "bf16" and config.method == "full":
        main["pure_bf16"] = True
    if config.evaluates:
        main["val_size"] = 0.1
    return _launched(config, target, main)


def _adapter(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_target": "all" if config.lora_targets == "all-linear" else config.lora_targets,
        "lora_dropout": config.lora_dropout,
    }
    if config.quantization != "none":
        found |= {
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "quantization_type": config.quantization,
            "double_quantization": config.double_quantization,
        }
    return found


def _written_packing(config: RunConfig) -> dict[str, Any]:
    if config.packing:
        return {"packing": True, "neat_packing": True}
    # Batches of one are never padded.
    return {} if config.padding or config.micro_batch == 1 else {"packing": True}


def _launched(config: RunConfig, target: Target, main: dict[str, Any]) -> Emitted:
    """The command: llamafactory-cli, or accelerate for FSDP, which LLaMA-Factory takes from there."""
    environment: dict[str, str] = {}
    if config.sharding in FSDP:
        if config.expandable_segments:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        settings = accelerate.content(config, nodes=target.nodes, per_node=target.per_node)
        command = ("accelerate", "launch", "--config_file", ACCELERATE_FILE, "-m", "llamafactory.launcher", MAIN)
        return Emitted(main, MAIN, command, environment, accelerate=settings)
    if config.sharding == "hsdp":
        raise CannotExpressError("LLaMA-Factory", {"sharding": "hsdp"})
    distributed = target.ranks > 1 or config.sharding in deepspeed.STAGES
    if distributed:
        environment["FORCE_TORCHRUN"] = "1"
        environment["NPROC_PER_NODE"] = str(target.per_node)
        if target.nodes > 1:
            environment["NNODES"] = str(target.nodes)
        if not config.expandable_segments:
            environment["OPTIM_TORCH"] = "0"
    elif config.expandable_segments:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    return Emitted(main, MAIN, ("llamafactory-cli", "train", MAIN), environment, deepspeed=content)
