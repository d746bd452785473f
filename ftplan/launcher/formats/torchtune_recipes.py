"""Which of torchtune's recipes a configuration is for, and what the recipes refuse before they load anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.partial import ANY_SHAPE, Shape
from ftplan.launcher.formats.settings import Settings
from ftplan.verdicts import Problem, Severity

SOURCE: Final = "torchtune 0.7 recipes/"
_IN_COMMENTS: Final = re.compile(
    r"^#.*\btune run\b.*?\b("
    r"(?:dev/)?[a-z_]*(?:finetune|qat|distillation|dpo|ppo|grpo)[a-z_]*(?:_single_device|_distributed)"
    r"|(?:dev/)?generate\w*|eleuther_eval|quantize)\b",
    re.MULTILINE,
)
OTHER_TASKS: Final[dict[str, str]] = {
    "dpo": "trains on preferences (DPO), with a second model",
    "ppo": "trains by reinforcement (PPO), with four models",
    "grpo": "trains by reinforcement (GRPO), with generation in between",
    "generate": "generates text, and trains nothing",
    "eleuther_eval": "evaluates, and trains nothing",
    "quantize": "quantizes a checkpoint, and trains nothing",
}
_OTHER_LOSSES: Final = {"torchtune.rlhf.": "dpo", ".grpo.": "grpo", ".rl.": "grpo"}


@dataclass(frozen=True)
class Recipe:
    """A recipe by name, empty where nothing tells it; ``launched`` is how ``tune run`` starts it: None if it does not.

    ``ranks`` is how many processes start in all.
    """

    name: str
    ranks: int
    launched: bool | None = None

    @property
    def is_distributed(self) -> bool:
        """Whether it is one that shards; without a name the number of processes decides."""
        return "_distributed" in self.name if self.name else self.ranks > 1

    @property
    def is_single(self) -> bool:
        """Whether it is for one process by its name."""
        return "single_device" in self.name

    def trains(self, kind: str) -> bool:
        """Whether it may be the recipe ``kind``: its name says so, or it has none."""
        return not self.name or self.name.startswith(kind)


def recipe_of(given: Given) -> Recipe:
    """The recipe of the command; else the one that the file's own comments tell to run it with."""
    launch = given.launch
    if launch.program == "tune run":
        named = next((word.text for word in launch.arguments if not word.text.startswith("-")), "")
        name = named.rsplit("/", 1)[-1].removesuffix(".py")
        return Recipe(name, given.ranks, launched=bool(launch.options))
    if launch.program.endswith(".py"):
        return Recipe(launch.program.rsplit("/", 1)[-1].removesuffix(".py"), given.ranks)
    text = given.document.text if given.document is not None and given.document.syntax == "yaml" else ""
    found = _IN_COMMENTS.search(text)
    return Recipe(found[1].removeprefix("dev/") if found else "", given.ranks)


def starts(given: Given) -> Shape:
    """One process for a recipe of one device, and where ``tune run`` gets no number of processes."""
    recipe = recipe_of(given)
    options = given.launch.options
    if recipe.is_single and "nproc_per_node" not in options:
        return Shape(1, 1)
    if recipe.launched is None:
        return ANY_SHAPE
    return Shape(None if "nnodes" in options else 1, None if "nproc_per_node" in options else 1)


def require_fine_tuning(settings: Settings, recipe: Recipe, where: str) -> None:
    """Raise for a configuration of anything but supervised fine-tuning."""
    loss = settings.text("loss._component_")
    kind = next((each for each in OTHER_TASKS if each in recipe.name), None)
    kind = kind or next((other for part, other in _OTHER_LOSSES.items() if part in loss), None)
    kind = kind or ("ppo" if "ppo_epochs" in settings else None)
    told = where or "the command line"
    if kind is not None:
        raise ConfigFileError(f"{told} {OTHER_TASKS[kind]}: only supervised fine-tuning is read", file=where)
    if not settings.text("model._component_") or not settings.text("optimizer._component_"):
        missing = "model._component_" if not settings.text("model._component_") else "optimizer._component_"
        raise ConfigFileError(f"{told} trains nothing: it has no {missing}", file=where, field=missing)


_Applies = Callable[[Settings, Recipe], bool]
_Rule = tuple[str, _Applies, str, str, str]


def _dimensions(settings: Settings) -> int:
    """The product of the sizes that are given; data_parallel_shard_dim -1 takes what is left."""
    product = 1
    for key in ("data_parallel_replicate_dim", "tensor_parallel_dim", "context_parallel_dim"):
        product *= settings.integer(key, 1, least=1)
    return product


def _misfits(settings: Settings, recipe: Recipe) -> bool:
    if not recipe.is_distributed:
        return False
    shard = settings.number("data_parallel_shard_dim", -1)
    known = _dimensions(settings)
    return recipe.ranks % known != 0 if shard < 0 else known * int(shard) != recipe.ranks


def _compiles(settings: Settings) -> bool:
    return settings.text("compile", "false").lower() not in ("false", "none", "no", "0", "")


CONFLICTS: Final[tuple[_Rule, ...]] = (
    (
        "dtype",
        lambda settings, _: settings.text("dtype").lower() == "fp16",
        "fp16 training is not supported",
        "set dtype bf16 or fp32",
        "lora_finetune_distributed.py, __init__",
    ),
    (
        "enable_activation_offloading",
        lambda settings, _: (
            settings.flag("enable_activation_offloading") and not settings.flag("enable_activation_checkpointing")
        ),
        "enable_activation_offloading needs enable_activation_checkpointing",
        "set enable_activation_checkpointing, too",
        "lora_finetune_distributed.py, __init__",
    ),
    (
        "optimizer_in_bwd",
        lambda settings, recipe: (
            _in_backward(settings, recipe) and settings.value("clip_grad_norm") not in (None, "None")
        ),
        "gradient clipping is not supported with optimizer_in_bwd",
        "leave clip_grad_norm out, or set optimizer_in_bwd false",
        "full_finetune_distributed.py, __init__",
    ),
    (
        "optimizer_in_bwd",
        lambda settings, recipe: (
            _in_backward(settings, recipe) and settings.integer("gradient_accumulation_steps", 1, least=1) > 1
        ),
        "gradient accumulation is not supported with optimizer_in_bwd",
        "set gradient_accumulation_steps 1, or optimizer_in_bwd false",
        "full_finetune_distributed.py, __init__",
    ),
    (
        "tensor_parallel_dim",
        lambda settings, recipe: (
            settings.integer("tensor_parallel_dim", 1, least=1) > 1
            and "tensor_parallel_plan._component_" not in settings
            and recipe.trains("full")
        ),
        "tensor_parallel_dim needs a tensor_parallel_plan",
        "give the model's plan, such as torchtune.models.llama3.base_llama_tp_plan",
        "full_finetune_distributed.py, __init__",
    ),
    (
        "tensor_parallel_dim",
        lambda settings, recipe: (
            settings.integer("tensor_parallel_dim", 1, least=1) > 1 and recipe.name == "lora_finetune_distributed"
        ),
        "the LoRA recipe has no tensor parallelism",
        "set tensor_parallel_dim 1",
        "lora_finetune_distributed.py, __init__",
    ),
    (
        "run_val_every_n_steps",
        lambda settings, _: (
            settings.value("run_val_every_n_steps") not in (None, "None")
            and not any(key.split(".")[0] == "dataset_val" for key in settings)
        ),
        "run_val_every_n_steps needs dataset_val",
        "give dataset_val, or leave run_val_every_n_steps out",
        "full_finetune_distributed.py, __init__",
    ),
    (
        "dataset.packed",
        lambda settings, _: settings.flag("dataset.packed") and settings.value("tokenizer.max_seq_len") is None,
        "a packed dataset needs the tokenizer's max_seq_len",
        "set tokenizer.max_seq_len",
        "torchtune/datasets/_sft.py and _alpaca.py",
    ),
    (
        "quantizer._component_",
        lambda settings, recipe: recipe.name.startswith("qat") and not settings.text("quantizer._component_"),
        "quantization-aware training needs a quantizer",
        "give quantizer._component_",
        "qat_distributed.py, _setup_model",
    ),
    (
        "compile",
        lambda settings, recipe: recipe.name == "qat_distributed" and _compiles(settings),
        "compile is not supported for quantization-aware training",
        "set compile false",
        "qat_distributed.py, __init__",
    ),
    (
        "compile",
        lambda settings, recipe: (
            recipe.name == "full_finetune_distributed"
            and settings.flag("optimizer_in_bwd")
            and settings.flag("compile.optimizer_step", default=_compiles(settings))
        ),
        "optimizer_in_bwd is not supported with a compiled optimizer step",
        "set compile or optimizer_in_bwd false",
        "full_finetune_distributed.py, setup",
    ),
    (
        "enable_fp8_training",
        lambda settings, _: (
            settings.flag("enable_fp8_training") and settings.integer("context_parallel_dim", 1, least=1) > 1
        ),
        "context parallelism is not supported with fp8 training",
        "leave one of them out",
        "full_finetune_distributed.py, _setup_model",
    ),
    (
        "data_parallel_shard_dim",
        _misfits,
        "the sizes of data, tensor and context parallelism do not multiply to the number of processes",
        "set data_parallel_shard_dim -1, which takes what is left",
        "torchtune/training/_distributed.py, ParallelDims",
    ),
    (
        "model.apply_lora_to_output",
        lambda settings, _: (
            settings.flag("model.apply_lora_to_output")
            and any(each in settings.text("model._component_") for each in ("llama3_2.", "gemma"))
        ),
        "the head is tied to the embeddings, and gets no adapter",
        "set apply_lora_to_output false",
        "torchtune/models/llama3_2/_component_builders.py",
    ),
    (
        "save_adapter_weights_only",
        lambda settings, recipe: (
            settings.text("checkpointer.model_type") == "LLAMA4"
            and "lora" in recipe.name
            and not settings.flag("save_adapter_weights_only")
        ),
        "Llama 4 with LoRA saves adapters only",
        "set save_adapter_weights_only true",
        "lora_finetune_distributed.py, setup",
    ),
    (
        "collate_fn",
        lambda settings, _: "left_pad_sequence" in settings.text("collate_fn"),
        "left_pad_sequence is for inference only",
        "use torchtune.data.padded_collate_sft",
        "lora_finetune_distributed.py, _setup_data",
    ),
    (
        "config",
        lambda _, recipe: recipe.is_distributed and recipe.launched is False,
        "a distributed recipe runs under a launcher only",
        "add --nproc_per_node to tune run",
        "lora_finetune_distributed.py, recipe_main",
    ),
    (
        "config",
        lambda _, recipe: recipe.is_single and recipe.launched is True,
        "a recipe of one device takes none of torchrun's options",
        "leave them out, or take the distributed recipe",
        "torchtune/_cli/run.py, _run_cmd",
    ),
)
"""What recipes refuse before anything is loaded: the key, when, why, what to do, and where that stands."""


def _in_backward(settings: Settings, recipe: Recipe) -> bool:
    """The LoRA recipes pass over it."""
    return settings.flag("optimizer_in_bwd") and "lora" not in recipe.name


def conflicts(settings: Settings, recipe: Recipe) -> Iterator[Problem]:
    """The rules that ``settings`` break."""
    for key, applies, message, hint, source in CONFLICTS:
        if applies(settings, recipe):
            prefix = "" if source.startswith("torchtune/") else "recipes/"
            yield Problem(
                "conflict",
                Severity.ERROR,
                message,
                hint=hint,
                key=key,
                place=settings.place(key),
                source=f"torchtune 0.7 {prefix}{source}",
            )
