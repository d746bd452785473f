"""What axolotl's settings ask for that no estimator models, beside what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.launcher.formats.axolotl_refusals import CONFLICTS, SOURCE
from ftplan.launcher.formats.axolotl_words import (
    FLASH,
    LIGER,
    LORA_KERNELS,
    WITHOUT_CAST,
    adapter,
    asked_attention,
    attention,
    attention_key,
    fsdp_version,
    has_liger,
    has_liger_loss,
    reenters,
)
from ftplan.launcher.formats.dialect import (
    ADAPTERS_WITHIN,
    CHECKPOINTED_ADAPTERS_WITHIN,
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

QUANTIZER_KEYS: Final = frozenset({"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"})
STATES_WITHIN: Final = 1.0
"""Were every parameter fp32 and not 16 bit, weights, gradients, states and activations would at most double."""


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
    if asked and not has_liger(settings):
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
    chosen = reenters(settings)
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
    if adapter(settings) == "lora" and settings.flag("load_in_4bit"):
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
    eight = adapter(settings) == "lora" and settings.flag("load_in_8bit")
    other = bool(settings.value("rl")) or settings.flag("trust_remote_code")
    return adapter(settings) in ("lora", "qlora") and not (fsdp1 or eight or other)
