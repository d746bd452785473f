"""llama-cookbook's command lines (llama-recipes of old among them), in both directions.

``finetuning.py`` takes its settings by python-fire: ``--key value``, a flag alone for true, ``--nokey`` for false, and
``--fsdp_config.key`` beside the bare name. It shards with FSDP1, loads weights in the checkpoint's dtype and has no
masters: full fine-tuning keeps everything in 16 bits, whatever its mixed precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.cookbook_rules import (
    assumptions,
    conflicts,
    nearest_strategy,
    quantization_of,
    starts,
)
from ftplan.launcher.formats.cookbook_writing import emit
from ftplan.launcher.formats.fsdp import FsdpAsked, fsdp_partial
from ftplan.launcher.formats.given import Format, Given
from ftplan.launcher.formats.partial import Partial, Taken
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.profiles.frameworks import load_vocabulary

NAME: Final = "cookbook"
PROMPTS: Final = "llama-adapter"
SECTIONS: Final = ("fsdp_config", "lora_config", "llama_adapter_config", "quantization_config", "train_config")
"""Classes of settings whose name may stand before a key; where a key has both forms, the dotted one counts."""
MODELLED: Final = frozenset(
    {
        *("model_name", "enable_fsdp", "use_peft", "peft_method", "quantization", "quant_type", "use_double_quant"),
        *("batch_size_training", "gradient_accumulation_steps", "context_length", "batching_strategy", "use_fp16"),
        *("mixed_precision", "pure_bf16", "optimizer", "sharding_strategy", "fsdp_activation_checkpointing"),
        *("fsdp_cpu_offload", "low_cpu_fsdp", "use_fast_kernels", "run_validation", "val_batch_size"),
        *(
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "adapter_len",
            "adapter_layers",
            "hsdp",
            "sharding_group_size",
            "replica_group_size",
        ),
    }
)
"""Keys that are read here, whatever they hold."""


def parse(given: Given) -> Partial:
    """The fields that the arguments of llama-cookbook's fine-tuning say."""
    given = replace(given, settings=_present(given.settings))
    settings = given.settings
    fields: dict[str, Any] = {
        "stack": NAME,
        "adapter_dtype": "fp32",
        "prepare_kbit": False,
        "kernels": "none",
        "loss_path": "full",
        "attention": "sdpa",
    }
    take = Taken(settings, fields)
    if settings.value("model_name"):
        take("model_name", "model", settings.text("model_name"))
    take("use_peft", "method", _method(settings))
    for field, key, value in _adapter(settings, fields["method"]):
        take(key, field, value)
    for field, key, value in _precision(settings, fields["method"]):
        take(key, field, value)
    if fields["method"] == PROMPTS:
        # Prompts take the dtype of the query's weight; that of packed ones is their storage's, bf16.
        fields["adapter_dtype"] = fields["weights_dtype"]
    take("context_length", "seq_len", settings.integer("context_length", 4096, least=1))
    take("batch_size_training", "micro_batch", settings.integer("batch_size_training", 4, least=1))
    take("gradient_accumulation_steps", "accumulation", settings.integer("gradient_accumulation_steps", 1, least=1))
    take("batching_strategy", "padding", _pads(settings) and fields["micro_batch"] > 1)
    # Packed rows are full, and nothing keeps their samples apart.
    take("batching_strategy", "packing", False)
    take("optimizer", "optimizer", _optimizer(settings))
    take("run_validation", "evaluates", settings.flag("run_validation", default=True))
    stated = given.launch.variable("PYTORCH_ALLOC_CONF") or given.launch.variable("PYTORCH_CUDA_ALLOC_CONF")
    fields["expandable_segments"] = "expandable_segments:true" in stated.lower()
    beside = {
        "eval_micro_batch": settings.integer("val_batch_size", 1, least=1),
        "learning_rate": settings.number("lr", 1e-4),
    }
    sharded = _sharding(settings, given)
    problems = (
        *audit(settings, load_vocabulary(NAME), MODELLED),
        *conflicts(settings, given),
        *assumptions(settings, given, {**sharded.fields, **fields}),
    )
    return Partial(fields, take.origins, problems=problems, beside=beside).over(sharded)


def _present(settings: Settings) -> Settings:
    """``settings`` by their bare names, with python-fire's ``--nokey`` as false."""
    vocabulary = load_vocabulary(NAME)
    bare: dict[str, Setting] = {}
    dotted: dict[str, Setting] = {}
    for key, each in settings.items():
        section, _, name = key.rpartition(".")
        if section in SECTIONS and name in vocabulary:
            dotted[name] = replace(each, key=name)
        elif key not in vocabulary and key.startswith("no") and key[2:] in vocabulary and each.value is True:
            bare[key[2:]] = replace(each, key=key[2:], value=False)
        else:
            bare[key] = each
    return Settings({**bare, **dotted})


def _method(settings: Settings) -> str:
    if not settings.flag("use_peft"):
        return "full"
    if settings.text("peft_method", "lora").lower() == "llama_adapter":
        return PROMPTS
    return "qlora" if quantization_of(settings) == "4bit" else "lora"


def _adapter(settings: Settings, method: str) -> Iterator[tuple[str, str, Any]]:
    """Fields of LoRA or LLaMA-Adapter and of 4-bit weights with the keys that say them."""
    if method == "full":
        return
    yield from _prompts(settings) if method == PROMPTS else _lora(settings)
    if quantization_of(settings) == "4bit":
        kind = settings.text("quant_type", "fp4").lower()
        if kind not in ("fp4", "nf4"):
            place = settings.place("quant_type")
            message = f"{place.file or 'the command line'}: quant_type is {kind[:40]!r}"
            raise ConfigFileError(message, file=place.file, line=place.line, hint="valid: fp4, nf4", field="quant_type")
        yield "quantization", "quant_type", kind
        yield "double_quantization", "use_double_quant", settings.flag("use_double_quant")


def _prompts(settings: Settings) -> Iterator[tuple[str, str, Any]]:
    yield "adapter_len", "adapter_len", settings.integer("adapter_len", 10, least=1)
    yield "adapter_layers", "adapter_layers", settings.integer("adapter_layers", 30, least=1)


def _lora(settings: Settings) -> Iterator[tuple[str, str, Any]]:
    yield "lora_rank", "r", settings.integer("r", 8, least=1)
    yield "lora_alpha", "lora_alpha", settings.integer("lora_alpha", 32, least=1)
    yield "lora_dropout", "lora_dropout", settings.number("lora_dropout", 0.05)
    names = settings.words("target_modules") or ("q_proj", "v_proj")
    yield "lora_targets", "target_modules", ",".join(each.strip("'\"[]() ") for each in names)


def _precision(settings: Settings, method: str) -> Iterator[tuple[str, str, Any]]:
    """Weights come in the checkpoint's dtype, bf16 for every model of the catalogue, or in fp16.

    FSDP1's mixed precision casts adapters, which peft made fp32, and frozen weights; weights that train have its dtype
    already. Without FSDP only ``use_fp16`` runs under autocast.
    """
    half = settings.flag("use_fp16")
    yield "weights_dtype", "use_fp16", "fp16" if half else "bf16"
    if not settings.flag("enable_fsdp"):
        yield "precision", "use_fp16", "fp16" if half else "none"
        return
    mixed = settings.flag("mixed_precision", default=True) and not settings.flag("pure_bf16")
    casts = mixed and method != "full"
    yield "precision", "mixed_precision", ("fp16" if half else "bf16") if casts else "none"


def _pads(settings: Settings) -> bool:
    return settings.text("batching_strategy", "packing").lower() == "padding"


def _optimizer(settings: Settings) -> str:
    """torch's AdamW, or AnyPrecisionAdamW, which goes through parameters one by one and makes nothing of all."""
    anyprecision = settings.text("optimizer", "AdamW").lower() == "anyprecision" and settings.flag("pure_bf16")
    return "adamw_torch_fused" if anyprecision else "adamw_torch"


def _sharding(settings: Settings, given: Given) -> Partial:
    """FSDP1 by its strategy; without ``enable_fsdp`` one process keeps everything, and nothing is checkpointed."""
    if not settings.flag("enable_fsdp"):
        place = Setting("enable_fsdp", None)
        fields: dict[str, Any] = {"sharding": "none", "offload": "none", "gradient_checkpointing": False}
        return Partial(fields, {"sharding": settings.get("enable_fsdp", place), "gradient_checkpointing": place})
    strategy = nearest_strategy(settings)
    asked = FsdpAsked(1, _fsdp_settings(settings), strategy, settings.place("enable_fsdp"))
    found = fsdp_partial(asked)
    own: dict[str, Any] = {
        "sync_each_batch": True,
        "gradient_checkpointing": settings.flag("fsdp_activation_checkpointing", default=True),
    }
    if given.ranks == 1:
        own["sharding"] = "none"
    key = "fsdp_activation_checkpointing"
    origins = {
        "gradient_checkpointing": settings.get(key, Setting(key, None)),
        "sharding": settings.get("sharding_strategy", Setting("sharding_strategy", None)),
    }
    return Partial(own, origins).over(found)


def _fsdp_settings(settings: Settings) -> Settings:
    """What `fsdp_partial` reads, by its names; each is dropped where it is not set."""
    if "fsdp_cpu_offload" not in settings:
        return Settings()
    return Settings({"cpu_offload": settings["fsdp_cpu_offload"]})


def pins(method: str) -> Mapping[str, Any]:
    """Fields that llama-cookbook decides by itself; ``method`` is the one asked for."""
    fixed: dict[str, Any] = {
        "stack": NAME,
        "adapter_dtype": "fp32",
        "prepare_kbit": False,
        "kernels": "none",
        "loss_path": "full",
        "attention": "sdpa",
        "optimizer": "adamw_torch",
        "packing": False,
    }
    if method == PROMPTS:  # on one card, which trains without autocast and without checkpointing
        fixed |= {"adapter_dtype": "bf16", "gradient_checkpointing": False, "sharding": "none"}
    return fixed if method not in ("full", PROMPTS) else {**fixed, "weights_dtype": "bf16", "precision": "none"}


CANNOT_SAY: Final[Mapping[str, tuple[Any, ...]]] = {
    "sharding": ("ddp", "fsdp2-grad-op", "hsdp", "zero1", "zero2", "zero3"),
    "offload": ("optimizer",),
}

FORMAT: Final = Format(NAME, "llama-cookbook", NAME, parse, emit, pins, cannot_say=CANNOT_SAY, shape=starts)
