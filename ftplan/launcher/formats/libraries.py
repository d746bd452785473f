"""The libraries' own files as formats: DeepSpeed's and accelerate's say a part, TrainingArguments a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import accelerate, deepspeed, trainer, versions
from ftplan.launcher.formats.deepspeed_batch import resolved
from ftplan.launcher.formats.given import ACCELERATE_FILE, DEEPSPEED_FILE, Emitted, Format, Given, Target
from ftplan.launcher.formats.model_arguments import BESIDE, KEYS, parse_model
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Settings
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.spec import RunConfig
from ftplan.verdicts import Problem

MAIN: Final = "training_args.json"


def _parse_deepspeed(given: Given) -> Partial:
    """A DeepSpeed file alone, or one that a script's ``--deepspeed`` names; the rest is for the user to state."""
    alone = Partial({"stack": "trainer"})
    settings = given.settings
    if given.document is not None and deepspeed.ZERO in settings:
        return alone.over(deepspeed.parse_alone(given.document, given.ranks))
    key = next((name for name in ("deepspeed", "deepspeed_config") if settings.value(name)), "")
    if not key:
        found = alone.over(resolved(given.around, given.ranks))  # the rest of what it says came with the source
        return found.over(deepspeed.plain_dtype(given.document, given.around)) if given.document else found
    path = given.files.find(settings.text(key), given.base)
    document = given.files.document(path, asked_by=settings.place(key).file)
    return alone.over(deepspeed.parse_alone(document, given.ranks))


def _parse_accelerate(given: Given) -> Partial:
    """accelerate's file alone; under its launcher what it says came with the source."""
    alone = Partial({"stack": "trainer"})
    if given.document is not None and "distributed_type" in given.settings:
        found = accelerate.parse(given.document, given.files)
        return alone.over(resolved(found, given.ranks)).over(found)
    return alone.over(resolved(given.around, given.ranks))


def _emit_deepspeed(config: RunConfig, target: Target) -> Emitted:
    whole = config.micro_batch * config.accumulation * target.ranks
    content = deepspeed.content(config, batch=(config.micro_batch, config.accumulation, whole), clipping=1.0)
    nodes = ("--num_nodes", str(target.nodes)) if target.nodes > 1 else ()
    command = ("deepspeed", *nodes, "--num_gpus", str(target.per_node), "train.py", "--deepspeed", DEEPSPEED_FILE)
    return Emitted({}, "", command, _environment(config), deepspeed=content)


def _emit_accelerate(config: RunConfig, target: Target) -> Emitted:
    settings = accelerate.content(config, nodes=target.nodes, per_node=target.per_node, deepspeed_file=DEEPSPEED_FILE)
    content = None
    if config.sharding in deepspeed.STAGES:
        # accelerate takes the precision from DeepSpeed's file alone.
        content = deepspeed.content(config)
        content |= {name: {"enabled": config.precision == name} for name in ("bf16", "fp16")}
    settings = versions.written(settings, load_vocabulary("accelerate"), target.version)
    command = ("accelerate", "launch", "--config_file", ACCELERATE_FILE, "train.py")
    return Emitted({}, "", command, _environment(config), deepspeed=content, accelerate=settings)


def _environment(config: RunConfig) -> dict[str, str]:
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if config.expandable_segments else {}


def _parse_arguments(given: Given) -> Partial:
    """TrainingArguments, with the model, adapters and quantization that a script beside them sets up itself."""
    base = trainer.parse_arguments(given)
    settings = trainer.leaves(given.settings, load_vocabulary("trl"))
    stated = Partial({"precision": given.around.fields.get("precision", "none")})
    fields: dict[str, Any] = {
        "stack": "trainer",
        "loss_path": "liger" if base.fields["kernels"] == "liger" else "full",
        "padding": base.fields["micro_batch"] > 1,
        "expandable_segments": given.launch.expands_segments,
    }
    model = parse_model(settings, dtype="auto")
    if not BESIDE & settings.keys():
        # A file of TrainingArguments alone says nothing of how the model is loaded.
        model = Partial({"method": "full"})
    return Partial(fields, problems=_audited(given)).over(model).over(base).over(stated)


def _audited(given: Given) -> tuple[Problem, ...]:
    """Problems with TrainingArguments, and with what a script sets up beside them under TRL's names."""
    arguments = {key: each for key, each in given.settings.items() if key not in BESIDE}
    beside = {key: each for key, each in given.settings.items() if key in BESIDE and key != "prepare_kbit"}
    return (
        *trainer.audited(replace(given, settings=Settings(arguments)), trainer.NAME, frozenset()),
        *trainer.audited(replace(given, settings=Settings(beside)), "trl", KEYS),
    )


def _emit_arguments(config: RunConfig, target: Target) -> Emitted:
    if config.trains_adapters:
        raise CannotExpressError(
            "TrainingArguments", {"method": config.method}, hint="use --format trl, which has LoRA"
        )
    main = trainer.arguments(config, target, version=target.version)
    if config.sharding in ("fsdp2", "fsdp2-grad-op"):
        main |= trainer.fsdp_arguments(config, target.version)
    main = versions.written(main, load_vocabulary(trainer.NAME), target.version)
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    nodes = ("--nnodes", str(target.nodes)) if target.nodes > 1 else ("--standalone",)
    command = ("torchrun", *nodes, "--nproc_per_node", str(target.per_node), "train.py", MAIN)
    return Emitted(main, MAIN, command, _environment(config), deepspeed=content)


NOT_ZERO: Final = ("none", "ddp", "fsdp2", "fsdp2-grad-op", "hsdp")
NO_HSDP: Final = {"sharding": ("hsdp",)}

DEEPSPEED: Final = Format(
    "deepspeed", "DeepSpeed", "deepspeed", _parse_deepspeed, _emit_deepspeed, cannot_say={"sharding": NOT_ZERO}
)
ACCELERATE: Final = Format(
    "accelerate", "accelerate", "accelerate", _parse_accelerate, _emit_accelerate, cannot_say=NO_HSDP
)
TRANSFORMERS: Final = Format(
    "transformers", "transformers", "transformers", _parse_arguments, _emit_arguments, cannot_say=NO_HSDP
)
