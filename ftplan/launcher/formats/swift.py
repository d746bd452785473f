"""ms-swift's command lines and YAML (``swift sft``, ``swift pt``), in both directions.

What it does by itself is in ``profiles/data/stacks.json``: reentrant checkpointing but under DDP, peft's adapters in
fp32. It starts one process unless NPROC_PER_NODE or NNODES is set, and spreads the model's layers over all cards that
this one sees. See `swift_rules` for what is not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.launcher.formats import swift_rules, trainer
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.dialect import expandable, fsdp_words, optimizer_of, present, targets_of
from ftplan.launcher.formats.given import Format, Given
from ftplan.launcher.formats.partial import ANY_SHAPE, Partial, Shape, Taken
from ftplan.launcher.formats.presets import SWIFT_DEEPSPEED, SWIFT_FSDP
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.launcher.formats.swift_rules import ATTENTION, DTYPES, NAME, environment, method_of
from ftplan.launcher.formats.swift_writing import emit
from ftplan.profiles.frameworks import load_vocabulary

SAMPLES_A_STEP: Final = 16
"""What accumulation makes up for where it is not stated (trainers/arguments.py)."""
MODELLED: Final = frozenset(
    {
        *("model", "lora_rank", "lora_alpha", "lora_dropout", "lora_dtype", "target_modules"),
        *("target_regex", "quant_bits", "quant_method", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
        *("bnb_4bit_quant_storage", "max_length", "packing_length", "packing", "padding_free", "attn_impl"),
        *("torch_dtype", "bf16", "fp16", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("use_liger_kernel", "deepspeed", "fsdp", "fsdp_config", "use_logits_to_keep", "eval_strategy"),
        *("vit_gradient_checkpointing", "split_dataset_ratio", "accelerator_config"),
    }
)


def parse(given: Given) -> Partial:
    """The fields that swift's settings say."""
    settings = _settings(given)
    swift_rules.require_fine_tuning(settings)
    base = trainer.parse_arguments(replace(given, settings=_arguments(settings, given)))
    fields: dict[str, Any] = {"stack": NAME, "prepare_kbit": False}
    take = Taken(settings, fields)
    if settings.value("model"):
        take("model", "model", settings.text("model"))
    weights, precision = _precision(settings)
    take("torch_dtype", "weights_dtype", weights)
    take("bf16", "precision", precision)
    take("tuner_type", "method", method_of(settings))
    if fields["method"] != "full":
        _take_adapter(settings, take)
    if fields["method"] == "qlora":
        take("bnb_4bit_quant_type", "quantization", settings.text("bnb_4bit_quant_type", "nf4"))
        double = settings.flag("bnb_4bit_use_double_quant", default=True)
        take("bnb_4bit_use_double_quant", "double_quantization", double)
    length = _length(settings)
    if length:
        take("max_length", "seq_len", length)
    take("attn_impl", "attention", ATTENTION.get(settings.text("attn_impl").lower(), "sdpa"))
    take("optim", "optimizer", optimizer_of(str(base.fields["optimizer"])))
    take("packing", "packing", settings.flag("packing"))
    flat = settings.flag("packing") or settings.flag("padding_free")
    take("padding_free", "padding", not flat and base.fields["micro_batch"] > 1)
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    fields["expandable_segments"] = expandable(lambda name: environment(given, name), names, default=False)
    written = Settings({key: each for key, each in given.settings.items() if key != "ENV"})
    problems = (
        *audit(written, load_vocabulary(NAME), MODELLED),
        *swift_rules.problems(settings, given, {**base.fields, **fields}),
    )
    return Partial(fields, take.origins, problems=problems).over(base)


def _settings(given: Given) -> Settings:
    """The settings under present names; until 3.0 ``quantization_bit`` meant bitsandbytes by itself."""
    kept = {key: each for key, each in given.settings.items() if key != "ENV"}
    if "quantization_bit" in kept and "quant_method" not in kept:
        kept["quant_method"] = Setting("quant_method", "bnb", kept["quantization_bit"].place)
    return present(Settings(kept), NAME)


def _take_adapter(settings: Settings, take: Taken) -> None:
    take("lora_rank", "lora_rank", settings.integer("lora_rank", 8, least=1))
    take("lora_alpha", "lora_alpha", settings.integer("lora_alpha", 32, least=1))
    take("lora_dropout", "lora_dropout", settings.number("lora_dropout", 0.05))
    key, names = swift_rules.named_targets(settings)
    take(key, "lora_targets", targets_of(names)[0] if names else "all-linear")
    # Trainables in fp16 are made fp32 (pipelines/train/tuner.py).
    dtype = DTYPES.get(settings.text("lora_dtype"), "fp32")
    take("lora_dtype", "adapter_dtype", "fp32" if dtype == "fp16" else dtype)


def _precision(settings: Settings) -> tuple[str, str]:
    """The checkpoint's dtype, bf16 for every model of the catalogue, unless stated; autocast follows it."""
    weights = DTYPES.get(settings.text("torch_dtype"), "bf16")
    half = settings.flag("fp16", default=weights != "bf16")
    brain = settings.flag("bf16", default=weights == "bf16")
    return weights, "bf16" if brain else "fp16" if half else "none"


def _length(settings: Settings) -> int:
    """Tokens of a row; 0 where it is left to the model's own limit."""
    whole = settings.integer("max_length", 0)
    return settings.integer("packing_length", whole) if settings.flag("packing") else whole


def _as(settings: Settings, key: str, value: Any) -> Setting:
    return Setting(key, value, settings.place(key))


def _arguments(settings: Settings, given: Given) -> Settings:
    """swift's settings as those of TrainingArguments, with its own defaults."""
    micro = settings.integer("per_device_train_batch_size", 1, least=1)
    made_up = max(1, -(-SAMPLES_A_STEP // (micro * given.ranks)))
    steps = settings.integer("gradient_accumulation_steps", made_up, least=1)
    evaluated = settings.integer("per_device_eval_batch_size", 1)
    found = {
        "per_device_train_batch_size": Setting("per_device_train_batch_size", micro),
        "gradient_accumulation_steps": Setting("gradient_accumulation_steps", steps),
        "per_device_eval_batch_size": Setting("per_device_eval_batch_size", evaluated),
        "gradient_checkpointing": _as(settings, "gradient_checkpointing", _checkpoints(settings, given)),
        "eval_strategy": _as(settings, "eval_strategy", "steps" if _evaluates(settings) else "no"),
    }
    found = {key: _as(settings, key, each.value) for key, each in found.items()}
    for key in ("optim", "learning_rate", "accelerator_config", "use_liger_kernel"):
        if settings.value(key) is not None:
            found[key] = settings[key]
    named = settings.value("deepspeed")
    if named:
        found["deepspeed"] = _as(settings, "deepspeed", SWIFT_DEEPSPEED.get(str(named), named))
    return Settings(found | _fsdp(settings, given))


def _checkpoints(settings: Settings, given: Given) -> bool:
    """FSDP's own checkpointing takes the other's place (arguments/sft_args.py)."""
    asked = _fsdp(settings, given).get("fsdp_config")
    inside = asked.value.get("activation_checkpointing") if asked is not None else None
    return bool(inside) or settings.flag("gradient_checkpointing", default=True)


def _fsdp(settings: Settings, given: Given) -> dict[str, Setting]:
    """``fsdp`` names a preset or a file with the words and the settings of TrainingArguments."""
    named = settings.value("fsdp")
    if not named:
        return {}
    content = swift_rules.fsdp_content(settings, given, SWIFT_FSDP)
    inside = content.get("fsdp_config", {})
    kept = {key.removeprefix("fsdp_"): value for key, value in inside.items()} if isinstance(inside, Mapping) else {}
    kept.setdefault("version", 2)
    words = str(content.get("fsdp", "full_shard auto_wrap")).replace(",", " ").split()
    return {
        "fsdp": _as(settings, "fsdp", fsdp_words(words, kept)),
        "fsdp_config": _as(settings, "fsdp", kept),
    }


def _evaluates(settings: Settings) -> bool:
    """There is data to evaluate on; the strategy is that of saving where none is stated."""
    data = any(settings.value(key) for key in ("val_dataset", "cached_val_dataset", "eval_dataset"))
    if not data and not settings.number("split_dataset_ratio", 0.0):
        return False
    return settings.text("eval_strategy", settings.text("save_strategy", "steps")).lower() not in ("no", "false")


def shape(given: Given) -> Shape:
    """One process, unless the environment says how many (cli/main.py); a launcher's command says it itself."""
    if given.launch.launcher not in ("", "swift"):
        return ANY_SHAPE
    nodes, per_node = environment(given, "NNODES"), environment(given, "NPROC_PER_NODE")
    return Shape(
        int(nodes) if nodes.isdecimal() and int(nodes) else 1,
        int(per_node) if per_node.isdecimal() and int(per_node) else 1,
    )


def pins(method: str) -> Mapping[str, Any]:
    """Fields that swift decides by itself; batches of several samples are padded besides (see `swift_writing`)."""
    del method
    return {"stack": NAME, "prepare_kbit": False}


FORMAT: Final = Format(NAME, "ms-swift", NAME, parse, emit, pins, shape=shape)
