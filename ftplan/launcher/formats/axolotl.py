"""axolotl's YAML with overrides on its command line, in both directions.

What it does by itself is in ``profiles/data/stacks.json``: reentrant checkpointing, expandable segments, peft's
adapters in fp32. Embeddings, norms and head are fp32 while it loads; where an adapter trains, attention is flash
attention or FSDP shards, they are 16 bit again before the training (loaders/model.py). See `axolotl_rules` for what is
not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats import axolotl_rules, axolotl_words, trainer
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.axolotl_words import NAME
from ftplan.launcher.formats.axolotl_writing import emit
from ftplan.launcher.formats.dialect import expandable, fsdp_words, opened_out, optimizer_of, targets_of
from ftplan.launcher.formats.given import Format, Given
from ftplan.launcher.formats.partial import Partial, Taken
from ftplan.launcher.formats.presets import AXOLOTL_DEEPSPEED
from ftplan.launcher.formats.settings import TRUE, Setting, Settings
from ftplan.profiles.frameworks import load_vocabulary

PAD_TO: Final = 64
"""Tokens that a batch's length is padded to a multiple of (core/builders/causal.py)."""
LAUNCHING: Final = frozenset(
    {"launcher", "cloud", "sweep", "num_processes", "main_process_port", "debug", "shard", "prompter", "config"}
)
"""Options of ``axolotl train`` that are no settings of the training (cli/args.py, cli/main.py)."""
MODELLED: Final = frozenset(
    {
        *("base_model", "load_in_4bit", "bnb_config_kwargs", "lora_r", "lora_alpha", "lora_dropout"),
        *("lora_target_modules", "lora_target_linear", "peft_autocast_adapter_dtype", *axolotl_words.LORA_KERNELS),
        *("sequence_len", "sample_packing", "pad_to_sequence_len", "pad_to_multiple_of", "micro_batch_size"),
        *("gradient_accumulation_steps", "batch_size", "eval_batch_size", "bf16", "fp16", "bfloat16", "float16"),
        *("gradient_checkpointing_kwargs.use_reentrant", "attn_implementation", *axolotl_words.ATTENTION_FLAGS),
        *("fsdp", "fsdp_version", "fsdp_config.fsdp_version", "fsdp_config.reshard_after_forward", "dp_shard_size"),
        *("dp_replicate_size", "fsdp_config.offload_params", "fsdp_config.activation_checkpointing", "deepspeed"),
        *("accelerator_config", "val_set_size", "evals_per_epoch", "eval_steps", "eval_strategy"),
        "fsdp_config.use_orig_params",
    }
)


def parse(given: Given) -> Partial:
    """The fields that axolotl's settings say."""
    kept = {key: each for key, each in given.settings.items() if key not in LAUNCHING}
    given = replace(given, settings=Settings(kept))
    settings = given.settings
    base = trainer.parse_arguments(replace(given, settings=_arguments(settings, given)))
    sharding = str(base.fields.get("sharding", ""))
    fields: dict[str, Any] = {"stack": "axolotl", "prepare_kbit": False}
    take = Taken(settings, fields)
    if settings.value("base_model"):
        take("base_model", "model", settings.text("base_model"))
    weights, precision = _precision(settings)
    take("bf16", "weights_dtype", weights)
    take("bf16", "precision", precision)
    take("adapter", "method", _method(settings))
    if fields["method"] != "full":
        _take_adapter(settings, take, weights)
    if fields["method"] == "qlora":
        quantization, double = _quantization(settings)
        take("bnb_config_kwargs", "quantization", quantization)
        take("bnb_config_kwargs", "double_quantization", double)
    take("sequence_len", "seq_len", _length(settings))
    take(axolotl_words.attention_key(settings), "attention", axolotl_words.attention(settings)[0])
    take("liger_fused_linear_cross_entropy", "kernels", "liger" if axolotl_words.has_liger_loss(settings) else "none")
    take("optimizer", "optimizer", optimizer_of(str(base.fields["optimizer"])))
    take("val_set_size", "evaluates", _evaluates(settings))
    if sharding.startswith("fsdp2") and settings.integer("dp_replicate_size", 1) > 1:
        take("dp_replicate_size", "sharding", "hsdp")
    for field, value in _packing(settings, base.fields["micro_batch"]).items():
        take("sample_packing" if field == "packing" else "pad_to_sequence_len", field, value)
    fields["expandable_segments"] = expandable(given.launch.variable, ("PYTORCH_ALLOC_CONF",), default=True)
    problems = (
        *audit(opened_out(given, NAME), load_vocabulary(NAME), MODELLED),
        *axolotl_rules.problems(settings, given, {**base.fields, **fields}),
    )
    return Partial(fields, take.origins, problems=problems).over(base)


def _arguments(settings: Settings, given: Given) -> Settings:
    """axolotl's settings as those of TrainingArguments that they become, under axolotl's names."""
    micro = settings.integer("micro_batch_size", 1, least=1)
    found = {
        "per_device_train_batch_size": _as(settings, "micro_batch_size", micro),
        "gradient_accumulation_steps": _accumulation(settings, micro),
        "per_device_eval_batch_size": _as(settings, "eval_batch_size", settings.integer("eval_batch_size", micro)),
        "optim": _as(settings, "optimizer", settings.text("optimizer", "adamw_torch_fused")),
        "gradient_checkpointing": _as(settings, "gradient_checkpointing", _checkpoints(settings)),
    }
    for key in ("learning_rate", "accelerator_config"):
        if settings.value(key) is not None:
            found[key] = settings[key]
    if settings.value("deepspeed"):
        found["deepspeed"] = _deepspeed(settings, given)
    return Settings(found | _fsdp(settings))


def _as(settings: Settings, key: str, value: Any) -> Setting:
    return Setting(key, value, settings.place(key))


def _accumulation(settings: Settings, micro: int) -> Setting:
    """``batch_size`` is micro-batch times accumulation of one device (utils/config, normalize_config)."""
    if settings.value("gradient_accumulation_steps") is None and settings.value("batch_size") is not None:
        return _as(settings, "batch_size", max(settings.integer("batch_size", 1, least=1) // micro, 1))
    steps = settings.integer("gradient_accumulation_steps", 1, least=1)
    return _as(settings, "gradient_accumulation_steps", steps)


def _checkpoints(settings: Settings) -> bool:
    """``offload`` and ``offload_disk`` checkpoint too; the audit says that they are not modelled."""
    if settings.text("gradient_checkpointing").lower() in ("offload", "offload_disk"):
        return True
    return settings.flag("gradient_checkpointing")


def _deepspeed(settings: Settings, given: Given) -> Setting:
    """The file, or what the package has under its name where it was not fetched."""
    named, place = settings.value("deepspeed"), settings.place("deepspeed")
    if isinstance(named, str):
        name = named.rsplit("/", 1)[-1]
        if name in AXOLOTL_DEEPSPEED and not given.files.has(given.files.find(named, given.base)):
            return Setting("deepspeed", AXOLOTL_DEEPSPEED[name], place)
    return Setting("deepspeed", named, place)


def _fsdp(settings: Settings) -> dict[str, Setting]:
    """``fsdp`` and ``fsdp_config``: a missing version is the first, and a strategy inside the second is not read."""
    inside = settings.value("fsdp_config") or {}
    if not isinstance(inside, Mapping):
        place = settings.place("fsdp_config")
        message = f"{place.file or 'the command line'}: fsdp_config is no mapping"
        raise ConfigFileError(message, file=place.file, line=place.line, field="fsdp_config")
    words = settings.words("fsdp")
    if not words and not inside:
        return {}
    named = {key.removeprefix("fsdp_"): value for key, value in inside.items()}
    named["version"] = settings.value("fsdp_version") or named.get("version") or 1
    named.pop("sharding_strategy", None)
    place = settings.place("fsdp_config") if inside else settings.place("fsdp")
    flagged = [word for word in words if word.lower() not in TRUE]
    return {
        "fsdp": Setting("fsdp", fsdp_words(flagged, named), settings.place("fsdp") if words else place),
        "fsdp_config": Setting("fsdp_config", named, place),
    }


def _method(settings: Settings) -> str:
    adapter = settings.text("adapter").strip().lower()
    if adapter in ("", "none", "false"):
        return "full"
    return "qlora" if adapter == "qlora" else "lora"


def _take_adapter(settings: Settings, take: Any, weights: str) -> None:
    rank = settings.integer("lora_r", 8, least=1)
    take("lora_r", "lora_rank", rank)
    take("lora_alpha", "lora_alpha", round(settings.number("lora_alpha", rank)) or 1)
    take("lora_dropout", "lora_dropout", settings.number("lora_dropout", 0.0))
    linear = settings.flag("lora_target_linear")
    names = settings.words("lora_target_modules")
    targets = "all-linear" if linear or not names else targets_of(names)[0]
    take("lora_target_linear" if linear else "lora_target_modules", "lora_targets", targets)
    kept = not settings.flag("peft_autocast_adapter_dtype", default=True)
    take("peft_autocast_adapter_dtype", "adapter_dtype", weights if kept else "fp32")


def _quantization(settings: Settings) -> tuple[str, bool]:
    """NF4 with double quantization unless ``bnb_config_kwargs`` says otherwise."""
    inside = settings.value("bnb_config_kwargs", {})
    asked = inside if isinstance(inside, Mapping) else {}
    kind = str(asked.get("bnb_4bit_quant_type", "nf4")).lower()
    return ("fp4" if kind == "fp4" else "nf4"), bool(asked.get("bnb_4bit_use_double_quant", True))


def _precision(settings: Settings) -> tuple[str, str]:
    """Dtypes of loaded weights and of autocast (utils/config, resolve_dtype); auto is taken for bf16."""
    half = settings.text("fp16").lower() in TRUE
    nulled = "bf16" in settings and settings["bf16"].value is None
    asked = "false" if nulled else settings.text("bf16", "auto").lower()
    if asked == "full":
        return "bf16", "none"
    if (asked == "auto" and not half) or (asked != "auto" and not nulled and settings.flag("bf16")):
        return "bf16", "bf16"
    if settings.flag("bfloat16"):
        return "bf16", "bf16"
    if half:
        return "fp16", "fp16"
    loads_half = settings.flag("float16") or settings.flag("load_in_8bit")
    return ("fp16" if loads_half else "fp32"), "none"


def _pads(settings: Settings) -> bool:
    """Whether rows are padded to a multiple of `PAD_TO`, or to the whole length, which is rounded up to one."""
    return settings.value("pad_to_sequence_len") is None or settings.flag("pad_to_sequence_len")


def _length(settings: Settings) -> int:
    length = settings.integer("sequence_len", 512, least=1)
    multiple = settings.integer("pad_to_multiple_of", PAD_TO) or PAD_TO
    return -(-length // multiple) * multiple if _pads(settings) else length


def _packing(settings: Settings, micro_batch: int) -> dict[str, bool]:
    """Packed rows carry positions and no mask where an attention is named that keeps samples apart; else a mask.

    A padded batch of one sample carries a mask, too: its length is rounded up.
    """
    if settings.flag("sample_packing"):
        apart = axolotl_words.attention(settings)[1]
        return {"packing": apart, "padding": not apart}
    return {"packing": False, "padding": _pads(settings) or micro_batch > 1}


def _evaluates(settings: Settings) -> bool:
    """Data to evaluate on, and a strategy or a number of evaluations that makes steps (core/builders/base.py)."""
    if not settings.number("val_set_size", 0.0) and not settings.value("test_datasets"):
        return False
    if settings.value("eval_steps"):
        return True
    if settings.number("evals_per_epoch", 0.0) * settings.number("num_epochs", 1.0) > 1:
        return True
    strategy = settings.text("eval_strategy") or settings.text("evaluation_strategy")
    return strategy.lower() not in ("", "no", "false")


def pins(method: str) -> Mapping[str, Any]:
    """Fields that axolotl decides by itself: its collator pads every batch to a multiple, and gives a mask."""
    del method
    return {"stack": "axolotl", "prepare_kbit": False, "padding": True, "packing": False}


FORMAT: Final = Format(NAME, "axolotl", NAME, parse, emit, pins)
