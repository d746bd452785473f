"""What axolotl's own validators refuse before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ftplan.launcher.formats.axolotl_words import (
    ALIASES,
    ATTENTION_FLAGS,
    LORA_KERNELS,
    adapter,
    asked_attention,
    fsdp_version,
    reenters,
)
from ftplan.launcher.formats.dialect import Rule
from ftplan.launcher.formats.settings import Settings

SOURCE: Final = "axolotl 0.18.0 utils/schemas/validation.py"
LOSSES: Final = (
    "cut_cross_entropy",
    "chunked_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
)


def _counted(settings: Settings, *keys: str) -> int:
    return sum(bool(settings.value(key)) for key in keys)


def _shards(settings: Settings) -> bool:
    return bool(settings.value("fsdp") or settings.value("fsdp_config"))


def _offloads(settings: Settings) -> bool:
    inside = settings.value("fsdp_config", {})
    return isinstance(inside, Mapping) and bool(inside.get("offload_params") or inside.get("fsdp_offload_params"))


def _loads_once(settings: Settings) -> bool:
    inside = settings.value("fsdp_config", {})
    keys = ("cpu_ram_efficient_loading", "fsdp_cpu_ram_efficient_loading")
    return isinstance(inside, Mapping) and any(bool(inside.get(key)) for key in keys)


def _checkpoints(settings: Settings) -> bool:
    return settings.text("gradient_checkpointing", "false").lower() not in ("false", "no", "off", "none", "0")


CONFLICTS: Final[tuple[Rule, ...]] = (
    Rule(
        "micro_batch_size",
        lambda settings: _counted(settings, "micro_batch_size", "gradient_accumulation_steps", "batch_size") < 2,
        "at least two of micro_batch_size, gradient_accumulation_steps and batch_size must be set",
        "set micro_batch_size and gradient_accumulation_steps",
    ),
    Rule(
        "batch_size",
        lambda settings: _counted(settings, "batch_size", "gradient_accumulation_steps") == 2,
        "only one of gradient_accumulation_steps and batch_size may be set",
        "leave batch_size out",
    ),
    Rule(
        "fsdp_config",
        lambda settings: fsdp_version(settings) == 2 and _loads_once(settings) and settings.flag("load_in_4bit"),
        "FSDP2 does not support cpu_ram_efficient_loading with load_in_4bit (from 0.19 on)",
        "set fsdp_config.cpu_ram_efficient_loading to false",
    ),
    Rule(
        "datasets",
        lambda settings: not _counted(settings, "datasets", "pretraining_dataset"),
        "either datasets or pretraining_dataset is required",
        "name the data",
    ),
    Rule(
        "load_in_4bit",
        lambda settings: not adapter(settings) and _counted(settings, "load_in_4bit", "load_in_8bit") > 0,
        "load_in_8bit and load_in_4bit need an adapter",
        "set adapter qlora, or leave them out",
    ),
    Rule(
        "load_in_4bit",
        lambda settings: adapter(settings) == "qlora" and not settings.flag("load_in_4bit"),
        "adapter qlora needs load_in_4bit",
        "set load_in_4bit true",
    ),
    Rule(
        "load_in_8bit",
        lambda settings: adapter(settings) == "qlora" and settings.flag("load_in_8bit"),
        "adapter qlora cannot be loaded in 8 bit",
        "set load_in_4bit instead",
    ),
    Rule(
        "lora_r",
        lambda settings: (
            adapter(settings) in ("lora", "qlora")
            and not settings.value("lora_model_dir")
            and _counted(settings, "lora_r", "lora_alpha") < 2
        ),
        "an adapter needs lora_r and lora_alpha, which have no defaults",
        "set both",
    ),
    Rule(
        "lora_target_modules",
        lambda settings: (
            adapter(settings) in ("lora", "qlora")
            and not settings.value("lora_model_dir")
            and not _counted(settings, "lora_target_modules", "lora_target_linear", "lora_target_parameters")
        ),
        "no modules are named for the adapters",
        "set lora_target_linear true",
    ),
    Rule(
        "deepspeed",
        lambda settings: _counted(settings, "deepspeed", "fsdp") == 2,
        "deepspeed and fsdp cannot be used together",
        "leave one of them out",
    ),
    Rule(
        "optimizer",
        lambda settings: (
            bool(settings.value("fsdp_config"))
            and fsdp_version(settings) == 2
            and settings.text("optimizer") in ("adamw_8bit", "adamw_bnb_8bit")
        ),
        "FSDP2 is not compatible with bitsandbytes' 8-bit Adam",
        "use optimizer adamw_torch_8bit",
    ),
    Rule(
        "optimizer",
        lambda settings: fsdp_version(settings) == 1 and _offloads(settings) and "8bit" in settings.text("optimizer"),
        "FSDP1's offload is not compatible with 8-bit optimizers",
        "use optimizer adamw_torch_fused, or fsdp_version 2",
    ),
    Rule(
        "sample_packing",
        lambda settings: settings.flag("sample_packing") and bool(settings.value("rl")),
        "sample_packing does not work with preference training",
        "leave it out",
    ),
    Rule(
        "attn_implementation",
        lambda settings: (
            bool(settings.value("attn_implementation")) and any(settings.flag(flag) for flag in ATTENTION_FLAGS)
        ),
        "attn_implementation cannot be combined with the older attention flags",
        "set only attn_implementation",
    ),
    Rule(
        "attn_implementation",
        lambda settings: settings.text("attn_implementation") in ALIASES,
        "attn_implementation takes whole names only",
        "write flash_attention_2, flex_attention or sdpa",
    ),
    Rule(
        "activation_offloading",
        lambda settings: (
            settings.text("activation_offloading", "false").lower() not in ("false", "no", "none")
            and not _checkpoints(settings)
        ),
        "activation_offloading requires gradient_checkpointing",
        "set gradient_checkpointing true",
    ),
    Rule(
        "relora",
        lambda settings: settings.flag("relora") and (_shards(settings) or bool(settings.value("deepspeed"))),
        "ReLoRA works neither with FSDP nor with DeepSpeed",
        "leave one of them out",
    ),
    Rule(
        "chunked_cross_entropy",
        lambda settings: sum(settings.flag(key) for key in LOSSES) > 1,
        "only one way to compute the cross entropy can be chosen",
        "leave all but one of cut, chunked and liger's out",
    ),
    Rule(
        "lora_mlp_kernel",
        lambda settings: (
            any(settings.flag(key) for key in LORA_KERNELS[:3])
            and adapter(settings) == "lora"
            and settings.flag("load_in_8bit")
        ),
        "LoRA's kernels are not compatible with 8-bit weights",
        "leave them out",
    ),
    Rule(
        "lora_mlp_kernel",
        lambda settings: any(settings.flag(key) for key in LORA_KERNELS[:3]) and settings.flag("trust_remote_code"),
        "LoRA's kernels are not compatible with trust_remote_code",
        "set them to false",
    ),
    Rule(
        "gradient_checkpointing_kwargs",
        lambda settings: bool(settings.value("unfrozen_parameters")) and reenters(settings) is True,
        "use_reentrant must be false for a partly frozen model",
        "set gradient_checkpointing_kwargs.use_reentrant false",
    ),
    Rule(
        "val_set_size",
        lambda settings: bool(settings.value("test_datasets")) and bool(settings.value("val_set_size")),
        "val_set_size and test_datasets exclude one another",
        "leave one of them out",
    ),
    Rule(
        "eval_steps",
        lambda settings: _counted(settings, "evals_per_epoch", "eval_steps") == 2,
        "eval_steps and evals_per_epoch exclude one another",
        "leave one of them out",
    ),
    Rule(
        "batch_flattening",
        lambda settings: settings.value("batch_flattening") is True and settings.flag("sample_packing"),
        "batch_flattening is not compatible with sample_packing",
        "leave it out",
    ),
    Rule(
        "context_parallel_size",
        lambda settings: (
            settings.integer("context_parallel_size", 1) > 1
            and "flash" not in asked_attention(settings)
            and not settings.flag("use_glm_dsa_kernels")
        ),
        "context_parallel_size requires flash attention",
        "set attn_implementation flash_attention_2",
    ),
    Rule(
        "dp_shard_size",
        lambda settings: settings.integer("dp_shard_size", 1) > 1 and not _shards(settings),
        "dp_shard_size needs an fsdp_config",
        "configure FSDP, or leave it out",
    ),
)
"""What its own validators refuse: the key, when, why, and what to do."""
