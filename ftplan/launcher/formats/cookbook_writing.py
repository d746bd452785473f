"""A configuration as llama-cookbook's command line. It has no file of its own."""

from __future__ import annotations

from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.spec import RunConfig

TITLE: Final = "llama-cookbook"
MODULE: Final = "llama_cookbook.finetuning"
DATASET: Final = "alpaca_dataset"


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as a command."""
    arguments = {
        "model_name": config.model,
        **_training(config, target),
        **_method(config),
        **_sharding(config),
        **_data(target),
    }
    words = [word for key, value in arguments.items() for word in _words(key, value)]
    environment: dict[str, str] = {}
    if config.expandable_segments:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if config.sharding == "none":
        return Emitted({}, "", ("python", "-m", MODULE, *words), environment)
    environment |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "1", "ACCELERATE_USE_FSDP": "1"}
    processes = ("--nnodes", str(target.nodes), "--nproc_per_node", str(target.per_node))
    return Emitted({}, "", ("torchrun", *processes, "-m", MODULE, *words), environment)


def _words(key: str, value: Any) -> tuple[str, ...]:
    """python-fire's form of one argument: true is a flag alone."""
    return (f"--{key}",) if value is True else (f"--{key}", str(value))


def _training(config: RunConfig, target: Target) -> dict[str, Any]:
    # Batches of one are never padded.
    pads = config.padding and config.micro_batch > 1
    found: dict[str, Any] = {
        "batch_size_training": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "context_length": config.seq_len,
        "batching_strategy": "padding" if pads else "packing",
        "num_epochs": max(1, round(target.epochs)),
        "lr": target.learning_rate if target.learning_rate is not None else 1e-4 if config.trains_adapters else 1e-5,
        "output_dir": target.output_dir,
    }
    if config.weights_dtype == "fp16":
        found["use_fp16"] = True
    if config.attention == "sdpa":
        found["use_fast_kernels"] = True
    if config.evaluates:
        found["val_batch_size"] = config.micro_batch
    else:
        found["run_validation"] = False
    return found


def _method(config: RunConfig) -> dict[str, Any]:
    if not config.trains_adapters:
        return {}
    found = {"use_peft": True, **(_prompts(config) if config.trains_prompts else _lora(config))}
    if config.quantization != "none":
        found |= {
            "quantization": "4bit",
            "quantization_config.quant_type": config.quantization,
            "quantization_config.use_double_quant": config.double_quantization,
        }
    return found


def _prompts(config: RunConfig) -> dict[str, Any]:
    return {
        "peft_method": "llama_adapter",
        "llama_adapter_config.adapter_len": config.adapter_len,
        "llama_adapter_config.adapter_layers": config.adapter_layers,
    }


def _lora(config: RunConfig) -> dict[str, Any]:
    names = ("q_proj", "v_proj") if config.lora_targets == "qv" else config.target_names
    return {
        "peft_method": "lora",
        "lora_config.r": config.lora_rank,
        "lora_config.lora_alpha": config.lora_alpha,
        "lora_config.lora_dropout": config.lora_dropout,
        "lora_config.target_modules": "all-linear" if config.lora_targets == "all-linear" else f"[{','.join(names)}]",
    }


def _sharding(config: RunConfig) -> dict[str, Any]:
    """FSDP1's settings; only FULL_SHARD, its default, can be had without a change of configs/fsdp.py."""
    if config.sharding == "none":
        return {}
    if config.sharding != "fsdp2":
        hint = "its command line takes FULL_SHARD only, which is fsdp2 here: set others in its configs/fsdp.py"
        raise CannotExpressError(TITLE, {"sharding": config.sharding}, hint=hint)
    found: dict[str, Any] = {
        "enable_fsdp": True,
        "low_cpu_fsdp": True,
        "fsdp_config.fsdp_activation_checkpointing": config.gradient_checkpointing,
        "dist_checkpoint_root_folder": "checkpoints",
        "dist_checkpoint_folder": "fine-tuned",
    }
    if config.offload == "optimizer+params":
        found["fsdp_config.fsdp_cpu_offload"] = True
    if config.precision == "none":
        found["mixed_precision"] = False
        if config.quantization == "none" and config.weights_dtype == "bf16":
            found["fsdp_config.pure_bf16"] = True
    return found


def _data(target: Target) -> dict[str, Any]:
    """One of its own data sets, or a file of instructions in place of alpaca's."""
    if target.dataset.lower().endswith(".json"):
        return {"dataset": DATASET, "alpaca_dataset.data_path": target.dataset}
    return {"dataset": target.dataset or DATASET}
