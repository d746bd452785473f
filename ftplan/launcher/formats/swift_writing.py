"""A configuration as ms-swift's YAML with the command that starts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import deepspeed, trainer
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.spec import RunConfig

MAIN: Final = "swift.yaml"
DEMO_DATASET: Final = "swift/self-cognition#1000"
DTYPES: Final[Mapping[str, str]] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ATTENTION: Final[Mapping[str, str]] = {"sdpa": "sdpa", "eager": "eager", "flash_attention_2": "flash_attn"}


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as swift's settings; what they cannot say is found when they are read back."""
    if config.sharding == "hsdp":
        raise CannotExpressError("ms-swift", {"sharding": config.sharding})
    if "qv" in config.target_names and config.trains_adapters:
        raise CannotExpressError("ms-swift", {"lora_targets": config.lora_targets}, hint="name the modules")
    if _rows(config) and config.attention != "flash_attention_2":
        hint = "packed and unpadded batches need flash_attention_2"
        raise CannotExpressError("ms-swift", {"padding": config.padding, "packing": config.packing}, hint=hint)
    main: dict[str, Any] = {
        "model": config.model,
        "tuner_type": "lora" if config.trains_adapters else "full",
        **(_adapter(config) if config.trains_adapters else {}),
        "torch_dtype": DTYPES[config.weights_dtype],
        "bf16": config.precision == "bf16",
        "fp16": config.precision == "fp16",
        "dataset": [target.dataset or DEMO_DATASET],
        "split_dataset_ratio": 0.01 if config.evaluates else 0.0,
        "max_length": config.seq_len,
        **_rows(config),
        "attn_impl": ATTENTION[config.attention],
        **_arguments(config, target),
    }
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    return Emitted(main, MAIN, ("swift", "sft", MAIN), _environment(config, target), deepspeed=content)


def _adapter(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": list(config.target_names),
    }
    if config.adapter_dtype != "fp32":
        found["lora_dtype"] = DTYPES[config.adapter_dtype]
    if config.quantization != "none":
        found |= {
            "quant_method": "bnb",
            "quant_bits": 4,
            "bnb_4bit_quant_type": config.quantization,
            "bnb_4bit_use_double_quant": config.double_quantization,
        }
        if config.sharding.startswith("fsdp"):
            found["bnb_4bit_quant_storage"] = "bfloat16"
    return found


def _rows(config: RunConfig) -> dict[str, Any]:
    """Packed rows, or samples of a batch one behind the other: both need flash attention, and have no mask."""
    if config.packing:
        return {"packing": True}
    return {"padding_free": True} if not config.padding and config.micro_batch > 1 else {}


def _arguments(config: RunConfig, target: Target) -> dict[str, Any]:
    """TrainingArguments, of which swift has other defaults; its FSDP is a mapping of its own."""
    found = trainer.arguments(config, target)
    found["gradient_checkpointing"] = config.gradient_checkpointing
    found["save_strategy"] = "epoch"
    if config.sharding.startswith("fsdp"):
        found["fsdp"] = {
            "fsdp": "full_shard auto_wrap" + (" offload" if config.offload != "none" else ""),
            "fsdp_config": {
                "fsdp_version": 2,
                "reshard_after_forward": config.sharding != "fsdp2-grad-op",
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "cpu_ram_efficient_loading": config.quantization == "none",
                "state_dict_type": "SHARDED_STATE_DICT",
                "activation_checkpointing": config.gradient_checkpointing,
            },
        }
        found["gradient_checkpointing"] = False
    return found


def _environment(config: RunConfig, target: Target) -> dict[str, str]:
    """As many processes as visible cards: with more cards than processes swift spreads one model over several."""
    found = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(target.per_node)))}
    if target.ranks > 1 or config.sharding in deepspeed.STAGES:
        found["NPROC_PER_NODE"] = str(target.per_node)
    if target.nodes > 1:
        found["NNODES"] = str(target.nodes)
    if config.expandable_segments:
        found["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return found
