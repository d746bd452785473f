"""A configuration as axolotl's YAML with the command that starts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import deepspeed, trainer
from ftplan.launcher.formats.axolotl_words import LIGER, LORA_KERNELS
from ftplan.launcher.formats.given import DEEPSPEED_FILE, Emitted, Target
from ftplan.spec import RunConfig

MAIN: Final = "axolotl.yaml"
DEMO_DATASET: Final = "mhenrichsen/alpaca_2k_test"
DTYPES: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    ("bf16", "bf16"): {"bf16": True},
    ("bf16", "none"): {"bf16": "full"},
    ("fp16", "fp16"): {"bf16": False, "fp16": True},
    ("fp16", "none"): {"bf16": False, "fp16": False, "float16": True},
    ("fp32", "none"): {"bf16": False, "fp16": False},
}
"""By dtype of weights and of autocast; weights always have autocast's where there is one."""


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as axolotl's settings; what they cannot say is found when they are read back."""
    if "qv" in config.target_names and config.trains_adapters:
        raise CannotExpressError("axolotl", {"lora_targets": config.lora_targets}, hint="name the modules")
    if config.sharding.startswith(("fsdp", "hsdp")) and config.optimizer in ("adamw_8bit", "adamw_bnb_8bit"):
        raise CannotExpressError("axolotl", {"optimizer": config.optimizer}, hint="it refuses this one with FSDP2")
    main: dict[str, Any] = {
        "base_model": config.model,
        **(_adapter(config) if config.trains_adapters else {}),
        "datasets": [{"path": target.dataset or DEMO_DATASET, "type": "alpaca"}],
        "val_set_size": 0.05 if config.evaluates else 0.0,
        "output_dir": target.output_dir,
        "sequence_len": config.seq_len,
        **_rows(config),
        "micro_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "num_epochs": target.epochs,
        "optimizer": config.optimizer,
        "lr_scheduler": "cosine",
        "learning_rate": trainer.rate_of(config, target),
        **DTYPES.get((config.weights_dtype, config.precision), {"bf16": config.precision == "bf16"}),
        "gradient_checkpointing": config.gradient_checkpointing,
        "attn_implementation": config.attention,
        **_options(config),
        **_sharding(config, target),
    }
    environment = {} if config.expandable_segments else {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    return Emitted(main, MAIN, _command(target), environment, deepspeed=content)


def _adapter(config: RunConfig) -> dict[str, Any]:
    """The adapter, without the kernels that axolotl would turn on: they are not what was planned."""
    found: dict[str, Any] = {
        "adapter": "qlora" if config.method == "qlora" else "lora",
        "lora_r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
    }
    if config.lora_targets == "all-linear":
        found["lora_target_linear"] = True
    else:
        found["lora_target_modules"] = list(config.target_names)
    if config.adapter_dtype != "fp32":
        found["peft_autocast_adapter_dtype"] = False
    if config.quantization != "none":
        found["load_in_4bit"] = True
        if config.quantization != "nf4" or not config.double_quantization:
            found["bnb_config_kwargs"] = {
                "bnb_4bit_quant_type": config.quantization,
                "bnb_4bit_use_double_quant": config.double_quantization,
            }
    return found | dict.fromkeys(LORA_KERNELS, False)


def _rows(config: RunConfig) -> dict[str, Any]:
    """Packed rows, padded ones, or single samples as they are."""
    if config.packing:
        found: dict[str, Any] = {"sample_packing": True, "pad_to_sequence_len": True}
    elif config.padding:
        found = {"sample_packing": False, "pad_to_sequence_len": True}
    else:
        return {"sample_packing": False, "pad_to_sequence_len": False}
    if config.seq_len % 64:
        found["pad_to_multiple_of"] = 8 if config.seq_len % 8 == 0 else 1
    return found


def _options(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if config.evaluates:
        found |= {"eval_strategy": "epoch", "eval_batch_size": config.micro_batch}
    if config.sync_each_batch:
        found["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    if config.kernels == "liger":
        kernels = ("rope", "rms_norm", "glu_activation", "layer_norm", "fused_linear_cross_entropy")
        found |= {"plugins": [LIGER], **{f"liger_{kernel}": True for kernel in kernels}}
    return found


def _sharding(config: RunConfig, target: Target) -> dict[str, Any]:
    if config.sharding in deepspeed.STAGES:
        return {"deepspeed": DEEPSPEED_FILE}
    if not config.sharding.startswith(("fsdp", "hsdp")):
        return {}
    found: dict[str, Any] = {
        "fsdp_version": 2,
        "fsdp_config": {
            "offload_params": config.offload != "none",
            "cpu_ram_efficient_loading": config.quantization == "none",
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "SHARDED_STATE_DICT",
            "reshard_after_forward": config.sharding != "fsdp2-grad-op",
        },
    }
    if config.sharding == "hsdp":
        found |= {"dp_shard_size": target.per_node, "dp_replicate_size": target.nodes}
    return found


def _command(target: Target) -> tuple[str, ...]:
    """One process without a group through accelerate; several through torchrun, whose options may be added behind."""
    start = ("axolotl", "train", MAIN, "--launcher")
    if target.ranks == 1:
        return (*start, "accelerate", "--", "--num_processes", "1")
    nodes = ("--nnodes", str(target.nodes)) if target.nodes > 1 else ()
    return (*start, "torchrun", "--", *nodes, "--nproc_per_node", str(target.per_node))
