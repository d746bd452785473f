"""What ms-swift refuses at its start, and what its settings ask for that no estimator models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.dialect import (
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

NAME: Final = "swift"
SOURCE: Final = "ms-swift 4.6.0.dev0 arguments/sft_args.py"
DTYPES: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "bf16": "bf16", "fp16": "fp16"}
ATTENTION: Final[Mapping[str, str]] = {
    "": "sdpa",
    "sdpa": "sdpa",
    "eager": "eager",
    "flash_attn": "flash_attention_2",
    "flash_attention_2": "flash_attention_2",
    "true": "flash_attention_2",
    "false": "sdpa",
}
"""``attn_impl``; true and false are those of ``use_flash_attn`` in releases before 3.0."""
OTHERS: Final[Mapping[str, str]] = {
    "rlhf_type": "swift rlhf",
    "micro_batch_size": "megatron sft",
    "global_batch_size": "megatron sft",
    "tensor_model_parallel_size": "megatron sft",
}
FLASH: Final = ("flash_attn", "flash_attention_2", "flash_attention_3", "flash_attention_4", "true")
FLOAT_STORAGE: Final = ("bfloat16", "float16", "float32")


def environment(given: Given, name: str) -> str:
    """A variable of the command, or of ``ENV`` in the YAML, which the command's wins over; empty if it is not set."""
    inside = given.settings.value("ENV", {})
    written = inside.get(name) if isinstance(inside, Mapping) else None
    return given.launch.variable(name) or ("" if written is None else str(written))


def require_fine_tuning(settings: Settings) -> None:
    """Raise for the settings of ``swift rlhf`` and of Megatron's trainer, which have the same keys and others."""
    for key, whose in OTHERS.items():
        if settings.value(key) is not None:
            place = settings.place(key)
            message = f"{place.file or 'the command line'}: {key} is of {whose}, which is not read"
            raise ConfigFileError(message, file=place.file, line=place.line, field=key)


def method_of(settings: Settings) -> str:
    """4 bits count only where bitsandbytes is named."""
    if settings.text("tuner_type", "lora").lower() == "full":
        return "full"
    quantizes = settings.text("quant_method").lower() == "bnb" and settings.text("quant_bits") == "4"
    return "qlora" if quantizes else "lora"


def named_targets(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The key that names the adapters' modules, and the names; none stand for all linear layers."""
    if settings.value("target_regex"):
        return "target_regex", (settings.text("target_regex"),)
    names = settings.words("target_modules")
    kept = tuple(name for name in names if name.lower() not in ("all-linear", "all", "all-embedding", "all-router"))
    return "target_modules", () if len(kept) < len(names) else kept


def fsdp_content(settings: Settings, given: Given, presets: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What ``fsdp`` names: a preset, a mapping, or a file."""
    named = settings.value("fsdp")
    if isinstance(named, Mapping):
        return named
    if str(named) in presets:
        return presets[str(named)]
    place = settings.place("fsdp")
    path = given.files.find(str(named), given.base)
    if str(path) in given.files.read:
        return given.files.documents[str(path)].data
    return given.files.document(path, asked_by=place.file or "the command line").data


def _is_flat(settings: Settings) -> bool:
    return settings.flag("packing") or settings.flag("padding_free")


CONFLICTS: Final[tuple[Rule, ...]] = (
    Rule(
        "model",
        lambda settings: not settings.value("model"),
        "swift needs a model",
        "set model",
    ),
    Rule(
        "dataset",
        lambda settings: not settings.value("dataset") and not settings.value("cached_dataset"),
        "swift needs a dataset",
        "set dataset or cached_dataset",
    ),
    Rule(
        "attn_impl",
        lambda settings: _is_flat(settings) and settings.text("attn_impl").lower() not in FLASH,
        "packing and padding_free require flash attention",
        "set attn_impl flash_attn",
    ),
    Rule(
        "deepspeed",
        lambda settings: bool(settings.value("deepspeed")) and bool(settings.value("fsdp")),
        "FSDP2 is not compatible with DeepSpeed",
        "leave one of them out",
    ),
    Rule(
        "quant_bits",
        lambda settings: (
            bool(settings.value("quant_method"))
            and not settings.value("quant_bits")
            and settings.text("quant_method").lower() in ("bnb", "hqq", "eetq", "quanto")
        ),
        "quant_method needs quant_bits",
        "set quant_bits 4",
    ),
    Rule(
        "quant_bits",
        lambda settings: (
            settings.text("quant_method").lower() == "bnb" and settings.text("quant_bits", "4") not in ("4", "8")
        ),
        "bitsandbytes quantizes to 4 or 8 bits",
        "set quant_bits 4",
    ),
    Rule(
        "lazy_tokenize",
        lambda settings: settings.flag("lazy_tokenize") and settings.flag("packing"),
        "packing and lazy_tokenize are incompatible",
        "leave lazy_tokenize out",
    ),
    Rule(
        "lazy_tokenize",
        lambda settings: settings.flag("lazy_tokenize") and settings.flag("streaming"),
        "streaming and lazy_tokenize are incompatible",
        "leave lazy_tokenize out",
    ),
    Rule(
        "warmup_ratio",
        lambda settings: bool(settings.value("warmup_ratio")) and bool(settings.value("warmup_steps")),
        "warmup_ratio and warmup_steps exclude one another",
        "leave one of them out",
    ),
    Rule(
        "save_only_model",
        lambda settings: settings.flag("save_only_model") and settings.value("fsdp") == "fsdp2",
        "save_only_model is not compatible with FSDP2's sharded checkpoints",
        "set save_only_model false",
    ),
)
"""What its own arguments refuse before anything is loaded: the key, when, why, and what to do."""


def problems(settings: Settings, given: Given, fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Refusals, and what is not modelled; ``fields`` are those that were read."""
    yield unmeasured("ms-swift", "ms-swift 4.6.0.dev0 (3602360a)")
    yield from refused(CONFLICTS, settings, SOURCE)
    yield from _of_devices(given, settings)
    yield from _of_length(fields)
    yield from _of_loss(settings, fields)
    yield from _of_quantization(settings, fields)
    yield from _of_checkpoints(settings, given, fields)
    asked = settings.text("attn_impl").lower()
    if asked not in ATTENTION:
        yield unmodelled(settings, "attn_impl", f"{asked[:30]} is estimated as sdpa")
    key, names = named_targets(settings)
    if fields["method"] != "full" and names and targets_of(names)[1]:
        yield pattern_problem(settings, key, targets_of(names)[0])
    special = {"all-embedding", "all-router"} & {name.lower() for name in settings.words("target_modules")}
    if fields["method"] != "full" and special:
        yield unmodelled(settings, "target_modules", f"{min(special)} gets adapters, too", less=False)


def _of_devices(given: Given, settings: Settings) -> Iterator[Problem]:
    """Without NPROC_PER_NODE one process spreads the layers over all cards that it sees; so do several with more."""
    launch = given.launch
    if launch.launcher not in ("", "swift"):
        return
    stated = environment(given, "NPROC_PER_NODE")
    seen = launch.visible
    spreads = seen is not None and len(seen) > max(int(stated) if stated.isdecimal() else 1, 1)
    if spreads and seen is not None:
        sharded = bool(settings.value("deepspeed") or settings.value("fsdp"))
        refuses = ", and refuses DeepSpeed and FSDP with that" if sharded else ""
        yield Problem(
            "devices",
            Severity.ERROR if sharded else Severity.WARNING,
            f"swift starts {_processes(stated)} on {len(seen)} cards, a model's layers on several{refuses}",
            hint=f"set NPROC_PER_NODE={len(seen)} in front of the command to train on all of them at once",
            source="ms-swift 4.6.0.dev0 model/utils.py, get_default_device_map",
            may_need_less=True,
        )
    elif not stated and not environment(given, "NNODES") and seen is None:
        yield Problem(
            "devices",
            Severity.NOTE,
            "swift starts one process without NPROC_PER_NODE, and spreads the model's layers over several cards",
            hint="set NPROC_PER_NODE to the number of cards in front of the command",
            source="ms-swift 4.6.0.dev0 cli/main.py",
        )


def _processes(stated: str) -> str:
    return f"{stated} processes" if stated.isdecimal() and int(stated) > 1 else "one process"


def _of_length(fields: Mapping[str, Any]) -> Iterator[Problem]:
    if "seq_len" not in fields:
        yield Problem(
            "unresolved",
            Severity.WARNING,
            "max_length is not set: samples may be as long as the model allows",
            hint="set max_length, or give it with --set max_length=...",
            key="max_length",
            may_need_more=True,
            may_need_less=True,
        )


def _of_loss(settings: Settings, fields: Mapping[str, Any]) -> Iterator[Problem]:
    stated = settings.value("use_logits_to_keep")
    if stated is not None and not settings.flag("use_logits_to_keep"):
        return
    if fields["kernels"] == "none":
        message = "only logits of answers are computed; a batch whose tokens are all of answers is estimated"
        yield assumed(message, key="use_logits_to_keep", place=settings.place("use_logits_to_keep"))


def _of_quantization(settings: Settings, fields: Mapping[str, Any]) -> Iterator[Problem]:
    method, bits = settings.text("quant_method").lower(), settings.text("quant_bits")
    if bits and not method and fields["method"] == "lora":
        yield Problem(
            "conflict",
            Severity.WARNING,
            "quant_bits has no effect without quant_method",
            hint="set quant_method bnb",
            key="quant_bits",
            place=settings.place("quant_bits"),
            source="ms-swift 4.6.0.dev0 arguments/base_args/quant_args.py",
        )
    elif method and fields["method"] != "qlora":
        yield unmodelled(settings, "quant_method", f"{bits[:8]} bits by {method[:20]} are estimated as 16-bit weights")
    stored = settings.text("bnb_4bit_quant_storage", "uint8")
    shards = str(fields.get("sharding", "")).startswith(("fsdp", "hsdp"))
    if shards and fields["method"] == "qlora" and stored not in FLOAT_STORAGE:
        why = "FSDP2 leaves 4-bit weights whole that are not stored in a float dtype"
        yield unmodelled(settings, "bnb_4bit_quant_storage", why, less=False)


def _of_checkpoints(settings: Settings, given: Given, fields: Mapping[str, Any]) -> Iterator[Problem]:
    inside = settings.value("gradient_checkpointing_kwargs", {})
    chosen = inside.get("use_reentrant") if isinstance(inside, Mapping) else None
    sharding = str(fields.get("sharding", "ddp" if given.ranks > 1 else "none"))
    reenters = sharding != "ddp" if chosen is None else bool(chosen)
    key = "gradient_checkpointing_kwargs"
    if fields["gradient_checkpointing"] and not reenters:
        if sharding == "zero3" and fields["method"] != "full":
            why = "without reentrant checkpoints ZeRO-3 lets go of frozen weights earlier"
            yield unmodelled(settings, key, why, more=False)
        else:
            yield other_checkpoints(settings, key)
    tower = settings.value("vit_gradient_checkpointing")
    if tower is not None and settings.flag("vit_gradient_checkpointing") != fields["gradient_checkpointing"]:
        why = "the vision tower is checkpointed or not, apart from the language model"
        yield unmodelled(settings, "vit_gradient_checkpointing", why)
