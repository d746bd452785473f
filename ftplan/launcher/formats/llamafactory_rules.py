"""What LLaMA-Factory's own parser refuses before anything is loaded, and what of it no estimator models."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ftplan.launcher.formats import deepspeed
from ftplan.launcher.formats.dialect import unmodelled
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Settings
from ftplan.verdicts import Problem, Severity

SOURCE: Final = "LLaMA-Factory 0.9.6.dev0 hparams/parser.py"
FSDP: Final = ("fsdp2", "fsdp2-grad-op")
ATTENTION: Final[Mapping[str, str]] = {
    "auto": "sdpa",
    "sdpa": "sdpa",
    "disabled": "eager",
    "off": "eager",
    "fa2": "flash_attention_2",
    "true": "flash_attention_2",
    "false": "sdpa",
}
"""``flash_attn``; true and false are those of releases before 0.6."""
FULL_ONLY: Final = ("use_galore", "use_apollo", "use_badam")
LORA_ONLY: Final = ("use_dora", "use_rslora", "pissa_init", "loraplus_lr_ratio")


def _is_lora(settings: Settings) -> bool:
    return settings.text("finetuning_type", "lora").lower() == "lora"


def _asks(settings: Settings, key: str) -> bool:
    return settings.number(key, 0) > 0 if key == "loraplus_lr_ratio" else settings.flag(key)


_Rule = tuple[str, Callable[[Settings, str], bool], str, str]

CONFLICTS: Final[tuple[_Rule, ...]] = (
    (
        "quantization_bit",
        lambda settings, _: (
            bool(settings.value("quantization_bit")) and settings.text("finetuning_type", "lora") == "full"
        ),
        "quantization is only for LoRA and OFT",
        "set finetuning_type lora, or leave quantization_bit out",
    ),
    (
        "pure_bf16",
        lambda settings, sharding: settings.flag("pure_bf16") and sharding == "zero3",
        "pure_bf16 is incompatible with DeepSpeed ZeRO-3",
        "use bf16, or ZeRO-2",
    ),
    (
        "predict_with_generate",
        lambda settings, sharding: settings.flag("predict_with_generate") and sharding == "zero3",
        "predict_with_generate is incompatible with DeepSpeed ZeRO-3",
        "leave it out, or use ZeRO-2",
    ),
    (
        "use_unsloth",
        lambda settings, sharding: settings.flag("use_unsloth") and sharding == "zero3",
        "Unsloth is incompatible with DeepSpeed ZeRO-3",
        "leave it out, or use ZeRO-2",
    ),
    (
        "quantization_bit",
        lambda settings, sharding: settings.text("quantization_bit") == "8" and sharding in ("zero3", *FSDP, "hsdp"),
        "only 4-bit models can be sharded by FSDP or ZeRO-3",
        "use quantization_bit 4",
    ),
    (
        "quantization_method",
        lambda settings, sharding: (
            bool(settings.value("quantization_bit")) and not is_bnb(settings) and sharding in ("zero3", *FSDP, "hsdp")
        ),
        "HQQ and EETQ are incompatible with FSDP and ZeRO-3",
        "use quantization_method bnb",
    ),
    (
        "use_galore",
        lambda settings, _: (
            (settings.flag("use_galore") or settings.flag("use_apollo")) and bool(settings.value("deepspeed"))
        ),
        "GaLore and APOLLO are incompatible with DeepSpeed",
        "leave one of them out",
    ),
    (
        "fp8",
        lambda settings, _: settings.flag("fp8") and bool(settings.value("quantization_bit")),
        "fp8 is not compatible with quantization",
        "leave one of them out",
    ),
    (
        "neat_packing",
        lambda settings, _: settings.flag("neat_packing") and settings.text("stage", "sft") != "sft",
        "neat_packing is for the sft stage only",
        "leave it out",
    ),
    (
        "adapter_name_or_path",
        lambda settings, _: (
            bool(settings.value("adapter_name_or_path")) and settings.text("finetuning_type", "lora") != "lora"
        ),
        "an adapter is only valid for LoRA",
        "set finetuning_type lora",
    ),
    (
        "finetuning_type",
        lambda settings, _: _is_lora(settings) and any(settings.flag(key) for key in FULL_ONLY),
        "LoRA cannot be used with GaLore, APOLLO or BAdam",
        "set finetuning_type full, or leave them out",
    ),
    (
        "finetuning_type",
        lambda settings, _: not _is_lora(settings) and any(_asks(settings, key) for key in LORA_ONLY),
        "use_dora, use_rslora, pissa_init and loraplus_lr_ratio are only valid for LoRA",
        "set finetuning_type lora, or leave them out",
    ),
    (
        "pissa_init",
        lambda settings, sharding: (
            settings.flag("pissa_init") and (bool(settings.value("quantization_bit")) or sharding == "zero3")
        ),
        "pissa_init is for 16-bit models without ZeRO-3",
        "initialize with its scripts/pissa_init.py",
    ),
    (
        "val_size",
        lambda settings, _: bool(settings.value("eval_dataset")) and settings.number("val_size", 0) > 0,
        "val_size and eval_dataset are both set",
        "leave one of them out",
    ),
    (
        "val_size",
        lambda settings, _: (
            _evaluates(settings) and not settings.number("val_size", 0) and not settings.value("eval_dataset")
        ),
        "an evaluation needs eval_dataset or val_size",
        "set val_size, or evaluate not at all",
    ),
)
"""What its own parser refuses before anything is loaded: the key, when, why, and what to do."""


def _launch_conflicts(given: Given, sharding: str) -> Iterator[Problem]:
    """One process without torchrun has no process group, which DeepSpeed needs."""
    launch = given.launch
    plain = launch.launcher in ("llamafactory-cli", "lmf", "python") and given.ranks == 1
    forced = launch.launcher != "python" and launch.variable("FORCE_TORCHRUN").lower() in ("1", "true")
    if sharding in deepspeed.STAGES and plain and not forced:
        yield Problem(
            "conflict",
            Severity.ERROR,
            "DeepSpeed is not started in a plain process",
            hint="set FORCE_TORCHRUN=1 in front of llamafactory-cli",
            key="deepspeed",
            place=given.settings.place("deepspeed"),
            source=SOURCE,
        )


VALID: Final[Mapping[str, tuple[str, ...]]] = {
    "stage": ("pt", "sft", "rm", "ppo", "dpo", "kto"),
    "finetuning_type": ("lora", "oft", "freeze", "full"),
    "flash_attn": ("auto", "disabled", "sdpa", "fa2", "fa3", "off", "true", "false"),
}
"""Values that its parser takes; the last three of flash_attn are those of releases before 0.6."""


def _wrong_values(settings: Settings) -> Iterator[Problem]:
    for key, valid in VALID.items():
        value = settings.text(key).lower()
        if value and value not in valid:
            near = difflib.get_close_matches(value, valid, n=1)
            hint = f"did you mean {near[0]}?" if near else f"valid: {', '.join(valid)}"
            place = settings.place(key)
            yield Problem(
                "conflict",
                Severity.ERROR,
                f"{key} {value[:40]!r} is none",
                hint=hint,
                key=key,
                place=place,
                source=SOURCE,
            )


def _evaluates(settings: Settings) -> bool:
    """do_eval, which transformers sets itself where there is a strategy, or a generation in its place."""
    asked = settings.text("eval_strategy", "no").lower() not in ("no", "false")
    return asked or settings.flag("do_eval") or settings.flag("predict_with_generate")


def strictly(problems: Iterable[Problem], given: Given) -> Iterator[Problem]:
    """``problems`` with keys: those that its parser does not know, or no more, it refuses, but for ALLOW_EXTRA_ARGS."""
    lenient = given.launch.variable("ALLOW_EXTRA_ARGS").lower() in ("1", "true")
    for each in problems:
        gone = each.kind in ("unknown-key", "removed-key")
        gone = gone or (each.kind == "renamed-key" and each.severity is Severity.WARNING)
        if gone and not lenient:
            yield replace(each, severity=Severity.ERROR, message=f"{each.message}, and LLaMA-Factory refuses it")
        else:
            yield each


def problems_of(given: Given, base: Partial) -> Iterator[Problem]:
    """Every refusal and everything unmodelled of ``given``; ``base`` is what its TrainingArguments say."""
    settings = given.settings
    yield from _wrong_values(settings)
    sharding = str(base.fields.get("sharding", ""))
    for key, applies, message, hint in CONFLICTS:
        if applies(settings, sharding):
            yield Problem(
                "conflict", Severity.ERROR, message, hint=hint, key=key, place=settings.place(key), source=SOURCE
            )
    yield from _launch_conflicts(given, sharding)
    kind = settings.text("finetuning_type", "lora").lower()
    stage = settings.text("stage", "sft").lower()
    if kind not in ("lora", "full"):
        yield unmodelled(settings, "finetuning_type", f"{kind[:20]} trains other parameters than LoRA or all weights")
    if stage not in ("sft", "pt"):
        yield unmodelled(settings, "stage", f"{stage[:20]} runs more than one forward a sample, or a second model")
    bits = settings.text("quantization_bit")
    if bits and kind != "full" and (bits != "4" or not is_bnb(settings)):
        method = settings.text("quantization_method", "bnb")[:20]
        yield unmodelled(settings, "quantization_bit", f"{bits[:8]} bits by {method} are estimated as 16-bit weights")
    if settings.text("flash_attn", "auto").lower() not in ATTENTION:
        yield unmodelled(settings, "flash_attn", f"{settings.text('flash_attn')[:20]} is estimated as sdpa")


def is_bnb(settings: Settings) -> bool:
    """Whether bitsandbytes quantizes."""
    return settings.text("quantization_method", "bnb").lower() in ("bnb", "bitsandbytes")
