"""What axolotl refuses at its start, and what its settings ask for that no estimator models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.launcher.formats.dialect import (
    ADAPTERS_WITHIN,
    CHECKPOINTED_ADAPTERS_WITHIN,
    Rule,
    assumed,
    other_checkpoints,
    pattern_problem,
    refused,
    targets_of,
    unmeasured,
    unmodelled,
)
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.settings import Settings
from ftplan.verdicts import Problem, Severity

NAME: Final = "axolotl"
SOURCE: Final = "axolotl 0.18.0 utils/schemas/validation.py"
LIGER: Final = "axolotl.integrations.liger.LigerPlugin"
LORA_KERNELS: Final = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
LOSSES: Final = (
    "cut_cross_entropy",
    "chunked_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
)
FLASH: Final = "flash_attention_2"
ATTENTION_FLAGS: Final[Mapping[str, str]] = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": FLASH,
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Older flags, the one that wins first."""
ALIASES: Final = {"flash": FLASH, "flex": "flex_attention", "sdp": "sdpa"}
WITHOUT_CAST: Final = ("eager", "sdpa")
QUANTIZER_KEYS: Final = frozenset({"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"})
STATES_WITHIN: Final = 1.0
"""Were every parameter fp32 and not 16 bit, weights, gradients, states and activations would at most double."""


def attention_key(settings: Settings) -> str:
    """The key that decides about attention."""
    return next((flag for flag in ATTENTION_FLAGS if settings.flag(flag)), "attn_implementation")


def asked_attention(settings: Settings) -> str:
    """The attention that is asked for, by its name in transformers; empty where none is."""
    named = settings.text("attn_implementation").strip()
    flagged = next((name for flag, name in ATTENTION_FLAGS.items() if settings.flag(flag)), "")
    return ALIASES.get(named, named) or flagged or (FLASH if settings.flag("gemma4_hybrid_attn_impl") else "")


def attention(settings: Settings) -> tuple[str, bool]:
    """The attention to estimate with, and whether packed samples are kept apart without a mask."""
    asked = asked_attention(settings)
    if "flash" in asked or asked in ("xformers", "sage"):
        return FLASH, True
    return (asked if asked in WITHOUT_CAST else "sdpa"), asked in (*WITHOUT_CAST, "flex_attention")


def _has_plugin(settings: Settings) -> bool:
    return any(name.endswith("LigerPlugin") for name in settings.words("plugins"))


def has_liger_loss(settings: Settings) -> bool:
    """Whether Liger's fused loss takes the head's place."""
    return _has_plugin(settings) and settings.flag("liger_fused_linear_cross_entropy")


def _counted(settings: Settings, *keys: str) -> int:
    return sum(bool(settings.value(key)) for key in keys)


def _adapter(settings: Settings) -> str:
    return settings.text("adapter").lower()


def _shards(settings: Settings) -> bool:
    return bool(settings.value("fsdp") or settings.value("fsdp_config"))


def fsdp_version(settings: Settings) -> int:
    """The version of FSDP that is asked for; the first where none is."""
    inside = settings.value("fsdp_config", {})
    inner = (inside.get("fsdp_version") or inside.get("version")) if isinstance(inside, Mapping) else None
    return 2 if str(settings.value("fsdp_version") or inner or 1) == "2" else 1


def _offloads(settings: Settings) -> bool:
    inside = settings.value("fsdp_config", {})
    return isinstance(inside, Mapping) and bool(inside.get("offload_params") or inside.get("fsdp_offload_params"))


def _checkpoints(settings: Settings) -> bool:
    return settings.text("gradient_checkpointing", "false").lower() not in ("false", "no", "off", "none", "0")


def _reenters(settings: Settings) -> Any:
    inside = settings.value("gradient_checkpointing_kwargs", {})
    return inside.get("use_reentrant") if isinstance(inside, Mapping) else None


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
        "datasets",
        lambda settings: not _counted(settings, "datasets", "pretraining_dataset"),
        "either datasets or pretraining_dataset is required",
        "name the data",
    ),
    Rule(
        "load_in_4bit",
        lambda settings: not _adapter(settings) and _counted(settings, "load_in_4bit", "load_in_8bit") > 0,
        "load_in_8bit and load_in_4bit need an adapter",
        "set adapter qlora, or leave them out",
    ),
    Rule(
        "load_in_4bit",
        lambda settings: _adapter(settings) == "qlora" and not settings.flag("load_in_4bit"),
        "adapter qlora needs load_in_4bit",
        "set load_in_4bit true",
    ),
    Rule(
        "load_in_8bit",
        lambda settings: _adapter(settings) == "qlora" and settings.flag("load_in_8bit"),
        "adapter qlora cannot be loaded in 8 bit",
        "set load_in_4bit instead",
    ),
    Rule(
        "lora_r",
        lambda settings: (
            _adapter(settings) in ("lora", "qlora")
            and not settings.value("lora_model_dir")
            and _counted(settings, "lora_r", "lora_alpha") < 2
        ),
        "an adapter needs lora_r and lora_alpha, which have no defaults",
        "set both",
    ),
    Rule(
        "lora_target_modules",
        lambda settings: (
            _adapter(settings) in ("lora", "qlora")
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
            and _adapter(settings) == "lora"
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
        lambda settings: bool(settings.value("unfrozen_parameters")) and _reenters(settings) is True,
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


def problems(settings: Settings, given: Given, fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Refusals, and what is not modelled; ``fields`` are those that were read."""
    yield unmeasured("axolotl", "axolotl 0.18.0 (067b021c)")
    yield from refused(CONFLICTS, settings, SOURCE)
    yield from _of_dtypes(settings, fields)
    yield from _of_attention(settings)
    yield from _of_liger(settings)
    yield from _of_checkpoints(settings, fields)
    yield from _of_ranks(settings, given)
    if fields["method"] != "full":
        yield from _of_adapters(settings, fields)


def _of_dtypes(settings: Settings, fields: Mapping[str, Any]) -> Iterator[Problem]:
    if settings.text("bf16", "auto").lower() == "auto" and fields["precision"] == "bf16":
        hint = "state bf16 or fp16"
        yield assumed("bf16 auto is read as bf16: cards without it get fp16", key="bf16", hint=hint)
    plain = fields.get("sharding", "none") in ("none", "ddp")
    attended = asked_attention(settings)
    keeps = not attended or attended in WITHOUT_CAST
    if fields["method"] == "full" and plain and keeps and fields["weights_dtype"] != "fp32":
        why = "embeddings, norms and head train in fp32 without flash attention"
        yield unmodelled(settings, "attn_implementation", why, less=False, within=STATES_WITHIN)


def _of_attention(settings: Settings) -> Iterator[Problem]:
    asked = asked_attention(settings)
    if asked not in ("", FLASH, *WITHOUT_CAST):
        key = attention_key(settings)
        yield unmodelled(settings, key, f"{asked[:30]} is estimated as {attention(settings)[0]}")


def _of_liger(settings: Settings) -> Iterator[Problem]:
    asked = [key for key in settings if key.startswith("liger_") and settings.value(key) is True]
    if asked and not _has_plugin(settings):
        yield Problem(
            "conflict",
            Severity.WARNING,
            f"{asked[0]} has no effect: plugins does not list Liger's",
            hint=f"add {LIGER} to plugins",
            key=asked[0],
            place=settings.place(asked[0]),
        )
        return
    fused = {"liger_rms_norm", "liger_glu_activation"} & {_present(key) for key in asked}
    if has_liger_loss(settings) and len(fused) < 2:
        why = "Liger's loss without its norms and activations is estimated with them"
        yield unmodelled(settings, "liger_fused_linear_cross_entropy", why, less=False)
    elif asked and not has_liger_loss(settings):
        yield unmodelled(settings, asked[0], "Liger's kernels without its fused loss hold less", more=False)


def _present(key: str) -> str:
    return "liger_glu_activation" if key == "liger_swiglu" else key


def _of_checkpoints(settings: Settings, fields: Mapping[str, Any]) -> Iterator[Problem]:
    chosen = _reenters(settings)
    first = chosen is None and bool(settings.value("unfrozen_parameters"))
    if not fields["gradient_checkpointing"] or not (chosen is False or first):
        return
    key = "gradient_checkpointing_kwargs"
    if fields.get("sharding") == "zero3" and fields["method"] != "full":
        why = "without reentrant checkpoints ZeRO-3 lets go of frozen weights earlier"
        yield unmodelled(settings, key, why, more=False)
        return
    yield other_checkpoints(settings, key)


def _of_ranks(settings: Settings, given: Given) -> Iterator[Problem]:
    copies = settings.integer("dp_replicate_size", 1) or 1
    shards = settings.integer("dp_shard_size", 0)
    if copies > 1 and given.launch.nodes not in (None, copies):
        yield unmodelled(settings, "dp_replicate_size", "one copy a node is estimated")
    elif copies == 1 and 1 < shards < given.ranks:
        yield unmodelled(settings, "dp_shard_size", "shards over all ranks are estimated", less=False)


def _of_adapters(settings: Settings, fields: Mapping[str, Any]) -> Iterator[Problem]:
    names = settings.words("lora_target_modules")
    if names and not settings.flag("lora_target_linear"):
        targets, guessed = targets_of(names)
        if guessed:
            yield pattern_problem(settings, "lora_target_modules", targets)
    if _adapter(settings) == "lora" and settings.flag("load_in_4bit"):
        why = "only adapter qlora loads 4-bit weights; with lora they are upcast to fp32"
        yield unmodelled(settings, "load_in_4bit", why, less=False)
    inside = settings.value("bnb_config_kwargs", {})
    others = sorted(set(inside) - QUANTIZER_KEYS) if isinstance(inside, Mapping) else []
    if others:
        yield unmodelled(settings, "bnb_config_kwargs", f"{others[0][:40]} changes how weights are quantized")
    if _uses_kernels(settings):
        within = CHECKPOINTED_ADAPTERS_WITHIN if fields["gradient_checkpointing"] else ADAPTERS_WITHIN
        why = "fused LoRA layers, on unless set to false, save fewer activations"
        key = next((key for key in LORA_KERNELS if settings.flag(key)), LORA_KERNELS[0])
        yield unmodelled(settings, key, why, more=False, within=within)


def _uses_kernels(settings: Settings) -> bool:
    """Asked for, or on by themselves: where none is mentioned (utils/schemas/config.py, check_auto_enable)."""
    if any(settings.value(key) is not None for key in LORA_KERNELS):
        return any(settings.flag(key) for key in LORA_KERNELS)
    fsdp1 = bool(settings.value("fsdp_config")) and fsdp_version(settings) == 1
    eight = _adapter(settings) == "lora" and settings.flag("load_in_8bit")
    other = bool(settings.value("rl")) or settings.flag("trust_remote_code")
    return _adapter(settings) in ("lora", "qlora") and not (fsdp1 or eight or other)
