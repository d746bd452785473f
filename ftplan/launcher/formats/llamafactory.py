"""LLaMA-Factory's YAML, JSON and command lines (``train_bash.py`` of old among them), in both directions.

What it does by itself is in ``profiles/data/stacks.json``: trainables in fp32 unless ``pure_bf16``, reentrant
checkpointing, DeepSpeed's Adam on the host. Its own parser's refusals are `CONFLICTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats import trainer
from ftplan.launcher.formats.given import Format, Given
from ftplan.launcher.formats.llamafactory_rules import ATTENTION, is_bnb, problems_of, strictly
from ftplan.launcher.formats.llamafactory_writing import emit
from ftplan.launcher.formats.partial import Partial, Taken
from ftplan.launcher.formats.settings import Setting, Settings

NAME: Final = "llamafactory"
OLD_NAMES: Final[Mapping[str, str]] = {
    "num_layer_trainable": "freeze_trainable_layers",
    "name_module_trainable": "freeze_trainable_modules",
    "max_length": "cutoff_len",
    "enable_liger": "enable_liger_kernel",
    "quantization_type": "quantization_type",
}
MODELLED: Final = frozenset(
    {
        *("model_name_or_path", "finetuning_type", "stage", "lora_rank", "lora_alpha", "lora_target", "lora_dropout"),
        *("quantization_bit", "quantization_method", "quantization_type", "double_quantization", "cutoff_len"),
        *("packing", "neat_packing", "flash_attn", "enable_liger_kernel", "disable_gradient_checkpointing"),
        *("pure_bf16", "eval_strategy", "val_size", "eval_dataset", "do_train", "do_eval"),
        *("gradient_checkpointing", "use_liger_kernel"),
    }
)


def parse(given: Given) -> Partial:
    """The fields that LLaMA-Factory's settings say."""
    given = _present(given)
    settings = given.settings
    _require_training(settings)
    base = trainer.parse_arguments(given)
    fields: dict[str, Any] = {"stack": "llamafactory", "adapter_dtype": "fp32", "prepare_kbit": False}
    take = Taken(settings, fields)
    if settings.value("model_name_or_path"):
        take("model_name_or_path", "model", settings.text("model_name_or_path"))
    take("finetuning_type", "method", _method(settings))
    if fields["method"] == "qlora":
        take("quantization_type", "quantization", settings.text("quantization_type", "nf4"))
        take("double_quantization", "double_quantization", settings.flag("double_quantization", default=True))
        take.origins["method"] = settings["quantization_bit"]
    if fields["method"] != "full":
        rank = settings.integer("lora_rank", 8, least=1)
        take("lora_rank", "lora_rank", rank)
        take("lora_alpha", "lora_alpha", settings.integer("lora_alpha", 2 * rank, least=1))
        take("lora_target", "lora_targets", _targets(settings))
        take("lora_dropout", "lora_dropout", settings.number("lora_dropout", 0.0))
    take("cutoff_len", "seq_len", settings.integer("cutoff_len", 2048, least=1))
    take("flash_attn", "attention", _attention(settings))
    take("enable_liger_kernel", "kernels", "liger" if settings.flag("enable_liger_kernel") else "none")
    checkpoints = not settings.flag("disable_gradient_checkpointing")
    take("disable_gradient_checkpointing", "gradient_checkpointing", checkpoints)
    take("eval_strategy", "evaluates", base.fields["evaluates"] or settings.flag("do_eval"))
    fields |= _precision(settings, given, trains_all=fields["method"] == "full")
    take.origins["precision"] = (
        settings["pure_bf16"] if settings.flag("pure_bf16") else base.origins.get("precision", Setting("bf16", None))
    )
    packed = _packing(settings, base.fields["micro_batch"])
    fields |= packed
    take.origins["packing"] = settings.get("neat_packing", Setting("neat_packing", None))
    take.origins["padding"] = Setting("packing", None)
    fields["expandable_segments"] = _expandable(given)
    problems = (*strictly(trainer.audited(given, NAME, MODELLED), given), *problems_of(given, base))
    return Partial(fields, take.origins, problems=problems).over(base)


def _present(given: Given) -> Given:
    """``given`` with older releases' names in their present form."""
    renamed = {
        new: Setting(new, given.settings[old].value, given.settings[old].place)
        for old, new in OLD_NAMES.items()
        if old != new and old in given.settings and new not in given.settings
    }
    kept = {key: each for key, each in given.settings.items() if key not in OLD_NAMES or OLD_NAMES[key] == key}
    return replace(given, settings=Settings(kept).replaced(renamed))


def _require_training(settings: Settings) -> None:
    """Raise for a configuration of inference, export or preprocessing alone."""
    if settings.flag("do_train"):
        return
    place = next((each.place for each in settings.values() if each.place.file), settings.place("do_train"))
    where = place.file or "the command line"
    raise ConfigFileError(f"{where} trains nothing: do_train is not set", file=where, field="do_train")


def _method(settings: Settings) -> str:
    kind = settings.text("finetuning_type", "lora").lower()
    if kind == "full":
        return "full"
    return "qlora" if settings.text("quantization_bit") == "4" and is_bnb(settings) else "lora"


def _targets(settings: Settings) -> str:
    names = settings.words("lora_target") or ("all",)
    return "all-linear" if "all" in names else ",".join(names)


def _attention(settings: Settings) -> str:
    asked = settings.text("flash_attn", "auto").lower()
    return ATTENTION.get(asked, "sdpa")


def _precision(settings: Settings, given: Given, *, trains_all: bool) -> dict[str, Any]:
    """Dtype of the loaded weights and of autocast.

    Weights keep the checkpoint's dtype, bf16 for every model of the catalogue, and are cast to fp32 where they train,
    unless `pure_bf16`. Without any mixed precision everything that trains computes in fp32.
    """
    if settings.flag("pure_bf16"):
        return {"weights_dtype": "bf16", "precision": "none"}
    asked = next((key for key in ("bf16", "fp16") if settings.flag(key)), None)
    if asked is None:  # accelerate's own setting then decides about autocast
        mixed = given.around.fields.get("precision") or given.launch.variable("ACCELERATE_MIXED_PRECISION")
        asked = mixed if mixed in ("bf16", "fp16") else None
    if asked is None:
        return {"weights_dtype": "fp32" if trains_all else "bf16", "precision": "none"}
    return {"weights_dtype": asked, "precision": asked}


def _packing(settings: Settings, micro_batch: int) -> dict[str, Any]:
    """Neat packing keeps samples apart by a mask; plain packing makes full rows without; else batches are padded."""
    neat = settings.flag("neat_packing")
    packed = neat or settings.flag("packing", default=settings.text("stage", "sft") == "pt")
    return {"packing": neat, "padding": not packed and micro_batch > 1}


def _expandable(given: Given) -> bool:
    """llamafactory-cli sets it for what it starts through torchrun (launcher.py, OPTIM_TORCH)."""
    launch = given.launch
    stated = launch.variable("PYTORCH_ALLOC_CONF") or launch.variable("PYTORCH_CUDA_ALLOC_CONF")
    by_cli = launch.launcher in ("", "llamafactory-cli", "lmf")
    forced = launch.variable("FORCE_TORCHRUN").lower() in ("1", "true")
    sets = by_cli and (forced or given.ranks > 1) and launch.variable("OPTIM_TORCH").lower() not in ("0", "false")
    return sets or "expandable_segments:true" in stated.lower()


def pins(method: str) -> Mapping[str, Any]:
    """Fields that LLaMA-Factory decides by itself; ``method`` is the one asked for."""
    fixed = {"stack": "llamafactory", "adapter_dtype": "fp32", "prepare_kbit": False}
    return fixed if method != "full" else {**fixed, "weights_dtype": "bf16"}


FORMAT: Final = Format(NAME, "LLaMA-Factory", NAME, parse, emit, pins, cannot_say={"sharding": ("hsdp",)})
