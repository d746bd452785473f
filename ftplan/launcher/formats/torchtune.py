"""torchtune's YAML files and ``tune run`` commands, in both directions.

Its recipes hold weights, adapters, gradients and states in one ``dtype``, without autocast; the distributed ones shard
with FSDP2 and reduce gradients after every micro-batch, those of one device start one process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.given import Format, Given
from ftplan.launcher.formats.partial import Partial, Taken
from ftplan.launcher.formats.settings import Setting, Settings, document_settings
from ftplan.launcher.formats.torchtune_models import ATTENTION, MLP, Builder, builder_of, model_of
from ftplan.launcher.formats.torchtune_problems import assumptions
from ftplan.launcher.formats.torchtune_recipes import Recipe, conflicts, recipe_of, require_fine_tuning, starts
from ftplan.launcher.formats.torchtune_writing import emit
from ftplan.profiles.frameworks import load_vocabulary

NAME: Final = "torchtune"
USUAL_LENGTH: Final = 2048
"""Tokens that are estimated where no maximum is set; the data decides."""
DTYPES: Final = {"bf16": "bf16", "fp32": "fp32", "fp16": "fp16", "none": "fp32"}
OPTIMIZERS: Final[Mapping[str, str]] = {
    "torch.optim.AdamW": "adamw_torch",
    "torch.optim.Adam": "adamw_torch",
    "torch.optim.SGD": "sgd",
    "bitsandbytes.optim.AdamW8bit": "adamw_bnb_8bit",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.Lion8bit": "lion_8bit",
}
CHUNKED_LOSSES: Final = ("LinearCrossEntropyLoss", "CEWithChunkedOutputLoss")
MODELLED: Final = frozenset(
    {
        *("model._component_", "model.lora_rank", "model.lora_alpha", "model.lora_attn_modules", "model.lora_dropout"),
        *("model.apply_lora_to_mlp", "model.quantize_base", "tokenizer.max_seq_len", "batch_size", "dtype"),
        *("gradient_accumulation_steps", "optimizer._component_", "optimizer.fused", "loss._component_", "dataset"),
        *("enable_activation_checkpointing", "fsdp_cpu_offload", "fsdp_reshard_after_forward", "config"),
        *("data_parallel_replicate_dim", "data_parallel_shard_dim", "run_val_every_n_steps", "batch_size_val"),
        # Without tensor_parallel_dim it does nothing.
        *("tensor_parallel_plan._component_",),
    }
)
"""Keys that are read here, whatever they hold."""
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_DEEPEST: Final = 8


def parse(given: Given) -> Partial:
    """The fields that a torchtune configuration says."""
    given = _with_config(given)
    settings = _resolved(given.settings)
    recipe = recipe_of(given)
    require_fine_tuning(settings, recipe, _where(settings))
    builder, kind = builder_of(settings.text("model._component_"))
    fields: dict[str, Any] = {
        "stack": NAME,
        "prepare_kbit": False,
        "precision": "none",
        "attention": "sdpa",
        "kernels": "none",
        # Batches carry no mask: attention is causal, and what follows a sample is its own padding.
        "padding": False,
    }
    take = Taken(settings, fields)
    component = settings.text("model._component_")
    take("model._component_", "model", model_of(builder, component, settings.text("checkpointer.checkpoint_dir")))
    take("model._component_", "method", _method(settings, kind))
    take("dtype", "weights_dtype", _dtype(settings))
    take("dtype", "adapter_dtype", fields["weights_dtype"])
    for field, key, value in _adapter(settings, fields["method"], builder):
        take(key, field, value)
    take("tokenizer.max_seq_len", "seq_len", settings.integer("tokenizer.max_seq_len", USUAL_LENGTH, least=1))
    take("batch_size", "micro_batch", settings.integer("batch_size", 1, least=1))
    take("gradient_accumulation_steps", "accumulation", settings.integer("gradient_accumulation_steps", 1, least=1))
    take("optimizer._component_", "optimizer", _optimizer(settings))
    take("loss._component_", "loss_path", _loss_path(settings))
    take("dataset.packed", "packing", _packs(settings))
    checkpoints = settings.flag("enable_activation_checkpointing") and settings.value("ac_mode") in (None, "None")
    take("enable_activation_checkpointing", "gradient_checkpointing", checkpoints)
    take("run_val_every_n_steps", "evaluates", settings.value("run_val_every_n_steps") not in (None, "None"))
    for field, key, value in _sharding(settings, recipe):
        take(key, field, value)
    stated = given.launch.variable("PYTORCH_ALLOC_CONF") or given.launch.variable("PYTORCH_CUDA_ALLOC_CONF")
    fields["expandable_segments"] = "expandable_segments:true" in stated.lower()
    beside: dict[str, Any] = {
        "eval_micro_batch": settings.integer("batch_size_val", fields["micro_batch"], least=1),
    }
    if settings.value("optimizer.lr") is not None:
        beside["learning_rate"] = settings.number("optimizer.lr", 0.0)
    problems = (
        *audit(_known_apart(given.settings), load_vocabulary(NAME), MODELLED),
        *conflicts(settings, recipe),
        *assumptions(settings, recipe, builder, fields, given.launch),
    )
    return Partial(fields, take.origins, problems=problems, beside=beside)


def _with_config(given: Given) -> Given:
    """``given`` with the file that ``--config`` names by torchtune's name for it, where such a file is there."""
    if given.document is not None or "config" not in given.settings:
        return given
    name = given.settings.text("config")
    place = given.settings.place("config")
    for folder in ("", "recipes/configs/"):
        path = given.files.find(f"{folder}{name}.yaml", given.base)
        if given.files.has(path):
            document = given.files.document(path, asked_by=place.file or "the command line")
            written = document_settings(document, nested=True)
            rest = {key: each for key, each in given.settings.items() if key != "config"}
            return replace(given, settings=written.replaced(rest), document=document)
    raise ConfigFileError(
        f"{place.file or 'the command line'}: {name[:80]!r} is a configuration inside torchtune's package",
        file=place.file,
        line=place.line,
        hint=f"write it out with tune cp {name[:80]} config.yaml, and give that file",
        field="config",
    )


def _where(settings: Settings) -> str:
    return next((each.place.file for each in settings.values() if each.place.file), "")


def _resolved(settings: Settings) -> Settings:
    """``settings`` with ``${key}`` in the place of another key's value; in a longer text it stays as it is.

    ``model=NAME`` on a command line means ``model._component_=NAME``.
    """
    shorthand = {
        f"{key}._component_": Setting(f"{key}._component_", each.value, each.place, each.unresolved)
        for key, each in settings.items()
        if "." not in key and f"{key}._component_" in settings and isinstance(each.value, str)
    }
    settings = settings.replaced(shorthand)
    found = {}
    for key, each in settings.items():
        value = each.value
        for _ in range(_DEEPEST):
            match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if match is None or match[1] not in settings:
                break
            value = settings[match[1]].value
        found[key] = replace(each, value=value)
    return Settings(found)


def _known_apart(settings: Settings) -> Settings:
    """``settings`` without arguments of components that recipes pass on, and that take no memory of a device."""
    free = ("metric_logger.", "profiler.", "lr_scheduler.", "dataset.", "datasets.", "dataset_val.")
    shorthand = {key for key in settings if "." not in key and f"{key}._component_" in settings}
    kept = {key: each for key, each in settings.items() if not key.startswith(free) and key not in shorthand}
    if "profiler.enabled" in settings:
        kept["profiler.enabled"] = settings["profiler.enabled"]
    return Settings(kept)


def _method(settings: Settings, kind: str) -> str:
    if kind == "lora" and settings.flag("model.quantize_base"):
        return "qlora"
    return kind or "full"


def _dtype(settings: Settings) -> str:
    name = settings.text("dtype", "none").lower()
    if name not in DTYPES:
        place = settings.place("dtype")
        message = f"{place.file or 'the command line'}: dtype is {name[:40]!r}"
        raise ConfigFileError(message, file=place.file, line=place.line, hint="valid: bf16, fp32", field="dtype")
    return DTYPES[name]


def _adapter(settings: Settings, method: str, builder: Builder | None) -> Iterator[tuple[str, str, Any]]:
    """Fields of LoRA with the keys that say them."""
    if method == "full":
        return
    rank = settings.integer("model.lora_rank", 8, least=1)
    yield "lora_rank", "model.lora_rank", rank
    yield "lora_alpha", "model.lora_alpha", settings.integer("model.lora_alpha", 16, least=1)
    yield "lora_dropout", "model.lora_dropout", settings.number("model.lora_dropout", 0.0)
    yield "lora_targets", "model.lora_attn_modules", _targets(settings, builder)
    if method == "qlora":
        # torchao's NF4Tensor: 8-bit scales of blocks of 64, with a factor for 256 of them.
        yield "quantization", "model._component_", "nf4"
        yield "double_quantization", "model._component_", True


def _targets(settings: Settings, builder: Builder | None) -> str:
    attention = settings.words("model.lora_attn_modules")
    unknown = [each for each in attention if each not in ATTENTION]
    mlp = settings.flag("model.apply_lora_to_mlp")
    if unknown or not (attention or mlp):
        place = settings.place("model.lora_attn_modules")
        raise ConfigFileError(
            f"{place.file or 'the command line'}: lora_attn_modules is {', '.join(attention)[:60] or 'empty'}",
            file=place.file,
            line=place.line,
            hint=f"valid: {', '.join(ATTENTION)}",
            field="model.lora_attn_modules",
        )
    if mlp and set(attention) == set(ATTENTION):
        return "all-linear"
    names = [*attention, *(MLP if mlp else ())]
    modules = [builder.module(each) if builder is not None else ATTENTION.get(each, each) for each in names]
    return ",".join(dict.fromkeys(modules))


def _optimizer(settings: Settings) -> str:
    name = OPTIMIZERS.get(settings.text("optimizer._component_"), "adamw_torch")
    return f"{name}_fused" if name == "adamw_torch" and settings.flag("optimizer.fused") else name


def _loss_path(settings: Settings) -> str:
    name = settings.text("loss._component_").rsplit(".", 1)[-1]
    return "chunked" if name in CHUNKED_LOSSES else "full"


def _packs(settings: Settings) -> bool:
    several = settings.value("dataset")
    if isinstance(several, list):
        return any(isinstance(each, Mapping) and each.get("packed") is True for each in several)
    return settings.flag("dataset.packed") or settings.flag("dataloader.packed")


def _sharding(settings: Settings, recipe: Recipe) -> Iterator[tuple[str, str, Any]]:
    """FSDP2 where several processes run a distributed recipe; one process keeps everything."""
    if not recipe.is_distributed or recipe.ranks == 1:
        yield "sharding", "data_parallel_shard_dim", "none"
        yield "offload", "fsdp_cpu_offload", "none"
        return
    if settings.number("data_parallel_shard_dim", -1) == 1:
        yield "sharding", "data_parallel_shard_dim", "ddp"
        yield "offload", "fsdp_cpu_offload", "none"
        return
    if settings.integer("data_parallel_replicate_dim", 1, least=1) > 1:
        yield "sharding", "data_parallel_replicate_dim", "hsdp"
    else:
        keeps = not settings.flag("fsdp_reshard_after_forward", default=True)
        yield "sharding", "fsdp_reshard_after_forward", "fsdp2-grad-op" if keeps else "fsdp2"
    offloads = settings.flag("fsdp_cpu_offload")
    yield "offload", "fsdp_cpu_offload", "optimizer+params" if offloads else "none"
    yield "sync_each_batch", "gradient_accumulation_steps", True


def pins(method: str) -> Mapping[str, Any]:
    """Fields that torchtune decides by itself; ``method`` is the one asked for."""
    del method
    return {
        "stack": NAME,
        "prepare_kbit": False,
        "precision": "none",
        "weights_dtype": "bf16",
        "adapter_dtype": "bf16",
        "attention": "sdpa",
        "kernels": "none",
        "loss_path": "chunked",
        "padding": False,
    }


CANNOT_SAY: Final[Mapping[str, tuple[Any, ...]]] = {
    "sharding": ("ddp", "zero1", "zero2", "zero3"),
    "offload": ("optimizer",),
    "quantization": ("fp4",),
}

FORMAT: Final = Format(NAME, "torchtune", NAME, parse, emit, pins, cannot_say=CANNOT_SAY, nested=True, shape=starts)
