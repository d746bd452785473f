"""LLaMA-Factory's YAML, JSON and command lines (``train_bash.py`` of old among them), in both directions.

What it does by itself is in ``profiles/data/stacks.json``: trainables in fp32 unless ``pure_bf16``, reentrant
checkpointing, DeepSpeed's Adam on the host. Its own parser's refusals are `CONFLICTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats import accelerate, deepspeed, trainer
from ftplan.launcher.formats.given import ACCELERATE_FILE, Emitted, Format, Given, Target
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.spec import RunConfig
from ftplan.verdicts import Problem, Severity

NAME: Final = "llamafactory"
SOURCE: Final = "LLaMA-Factory 0.9.6.dev0 hparams/parser.py"
MAIN: Final = "train.yaml"
DEMO_DATASET: Final = "alpaca_en_demo"
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
    origins: dict[str, Setting] = {}

    def take(key: str, field: str, value: Any) -> None:
        fields[field] = value
        origins[field] = settings[key] if key in settings else Setting(key, None)

    if settings.value("model_name_or_path"):
        take("model_name_or_path", "model", settings.text("model_name_or_path"))
    take("finetuning_type", "method", _method(settings))
    if fields["method"] == "qlora":
        take("quantization_type", "quantization", settings.text("quantization_type", "nf4"))
        take("double_quantization", "double_quantization", settings.flag("double_quantization", default=True))
        origins["method"] = settings["quantization_bit"]
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
    origins["precision"] = (
        settings["pure_bf16"] if settings.flag("pure_bf16") else base.origins.get("precision", Setting("bf16", None))
    )
    packed = _packing(settings, base.fields["micro_batch"])
    fields |= packed
    origins |= {
        "packing": settings.get("neat_packing", Setting("neat_packing", None)),
        "padding": Setting("packing", None),
    }
    fields["expandable_segments"] = _expandable(given)
    problems = (*trainer.audited(given, NAME, MODELLED), *_conflicts(given, base))
    return Partial(fields, origins, problems=problems).over(base)


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
    return "qlora" if settings.text("quantization_bit") == "4" and _is_bnb(settings) else "lora"


def _is_bnb(settings: Settings) -> bool:
    return settings.text("quantization_method", "bnb").lower() in ("bnb", "bitsandbytes")


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
            bool(settings.value("quantization_bit")) and not _is_bnb(settings) and sharding in ("zero3", *FSDP, "hsdp")
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
            settings.flag("do_eval") and not settings.number("val_size", 0) and not settings.value("eval_dataset")
        ),
        "an evaluation needs eval_dataset or val_size",
        "set val_size, or leave do_eval out",
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


def _conflicts(given: Given, base: Partial) -> Iterator[Problem]:
    settings = given.settings
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
        yield _unmodelled(settings, "finetuning_type", f"{kind[:20]} trains other parameters than LoRA or all weights")
    if stage not in ("sft", "pt"):
        yield _unmodelled(settings, "stage", f"{stage[:20]} runs more than one forward a sample, or a second model")
    bits = settings.text("quantization_bit")
    if bits and kind != "full" and (bits != "4" or not _is_bnb(settings)):
        method = settings.text("quantization_method", "bnb")[:20]
        yield _unmodelled(settings, "quantization_bit", f"{bits[:8]} bits by {method} are estimated as 16-bit weights")
    if settings.text("flash_attn", "auto").lower() not in ATTENTION:
        yield _unmodelled(settings, "flash_attn", f"{settings.text('flash_attn')[:20]} is estimated as sdpa")


def _unmodelled(settings: Settings, key: str, why: str) -> Problem:
    return Problem(
        "unmodelled",
        Severity.WARNING,
        f"{key} is not modelled: {why}",
        key=key,
        place=settings.place(key),
        may_need_more=True,
        may_need_less=True,
    )


def pins(method: str) -> Mapping[str, Any]:
    """Fields that LLaMA-Factory decides by itself; ``method`` is the one asked for."""
    fixed = {"stack": "llamafactory", "adapter_dtype": "fp32", "prepare_kbit": False}
    return fixed if method != "full" else {**fixed, "weights_dtype": "bf16"}


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as LLaMA-Factory's settings."""
    main: dict[str, Any] = {
        "model_name_or_path": config.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if config.method == "full" else "lora",
        **(_adapter(config) if config.trains_adapters else {}),
        "dataset": target.dataset or DEMO_DATASET,
        "cutoff_len": config.seq_len,
        **_written_packing(config),
        "flash_attn": {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}[config.attention],
    }
    if not config.gradient_checkpointing:
        main["disable_gradient_checkpointing"] = True
    passed_on = trainer.arguments(config, target)
    for key in ("gradient_checkpointing", "use_liger_kernel"):
        passed_on.pop(key, None)
    main |= passed_on
    if config.kernels == "liger":
        main["enable_liger_kernel"] = True
    if config.precision == "none" and config.weights_dtype == "bf16" and config.method == "full":
        main["pure_bf16"] = True
    if config.evaluates:
        main["val_size"] = 0.1
    return _launched(config, target, main)


def _adapter(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_target": "all" if config.lora_targets == "all-linear" else config.lora_targets,
        "lora_dropout": config.lora_dropout,
    }
    if config.quantization != "none":
        found |= {
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "quantization_type": config.quantization,
            "double_quantization": config.double_quantization,
        }
    return found


def _written_packing(config: RunConfig) -> dict[str, Any]:
    if config.packing:
        return {"packing": True, "neat_packing": True}
    # Batches of one are never padded.
    return {} if config.padding or config.micro_batch == 1 else {"packing": True}


def _launched(config: RunConfig, target: Target, main: dict[str, Any]) -> Emitted:
    """The command: llamafactory-cli, or accelerate for FSDP, which LLaMA-Factory takes from there."""
    environment: dict[str, str] = {}
    if config.sharding in FSDP:
        if config.expandable_segments:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        settings = accelerate.content(config, nodes=target.nodes, per_node=target.per_node)
        command = ("accelerate", "launch", "--config_file", ACCELERATE_FILE, "-m", "llamafactory.launcher", MAIN)
        return Emitted(main, MAIN, command, environment, accelerate=settings)
    if config.sharding == "hsdp":
        raise CannotExpressError("LLaMA-Factory", {"sharding": "hsdp"})
    distributed = target.ranks > 1 or config.sharding in deepspeed.STAGES
    if distributed:
        environment["FORCE_TORCHRUN"] = "1"
        environment["NPROC_PER_NODE"] = str(target.per_node)
        if target.nodes > 1:
            environment["NNODES"] = str(target.nodes)
        if not config.expandable_segments:
            environment["OPTIM_TORCH"] = "0"
    elif config.expandable_segments:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    return Emitted(main, MAIN, ("llamafactory-cli", "train", MAIN), environment, deepspeed=content)


FORMAT: Final = Format(NAME, "LLaMA-Factory", NAME, parse, emit, pins, cannot_say={"sharding": ("hsdp",)})
