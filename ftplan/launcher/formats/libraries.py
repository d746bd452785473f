"""The libraries' own files as formats: DeepSpeed's and accelerate's say a part, TrainingArguments a training."""

from __future__ import annotations

from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import accelerate, deepspeed, trainer
from ftplan.launcher.formats.given import ACCELERATE_FILE, DEEPSPEED_FILE, Emitted, Format, Given, Target
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Setting
from ftplan.spec import RunConfig

MAIN: Final = "training_args.json"


def _parse_deepspeed(given: Given) -> Partial:
    """A DeepSpeed file alone, or one that a script's ``--deepspeed`` names; the rest is for the user to state."""
    alone = Partial({"stack": "trainer"})
    settings = given.settings
    if given.document is not None and deepspeed.ZERO in settings:
        return alone.over(deepspeed.parse(given.document))
    key = next((name for name in ("deepspeed", "deepspeed_config") if settings.value(name)), "")
    if not key:
        return alone  # what it says came with the source
    path = given.files.find(settings.text(key), given.base)
    return alone.over(deepspeed.parse(given.files.document(path, asked_by=settings.place(key).file)))


def _parse_accelerate(given: Given) -> Partial:
    """accelerate's file alone; under its launcher what it says came with the source."""
    alone = Partial({"stack": "trainer"})
    if given.document is not None and "distributed_type" in given.settings:
        return alone.over(accelerate.parse(given.document, given.files))
    return alone


def _emit_deepspeed(config: RunConfig, target: Target) -> Emitted:
    whole = config.micro_batch * config.accumulation * target.ranks
    content = deepspeed.content(config, batch=(config.micro_batch, config.accumulation, whole), clipping=1.0)
    command = ("deepspeed", "--num_gpus", str(target.per_node), "train.py", "--deepspeed", DEEPSPEED_FILE)
    return Emitted({}, "", command, _environment(config), deepspeed=content)


def _emit_accelerate(config: RunConfig, target: Target) -> Emitted:
    settings = accelerate.content(config, nodes=target.nodes, per_node=target.per_node, deepspeed_file=DEEPSPEED_FILE)
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    command = ("accelerate", "launch", "--config_file", ACCELERATE_FILE, "train.py")
    return Emitted({}, "", command, _environment(config), deepspeed=content, accelerate=settings)


def _environment(config: RunConfig) -> dict[str, str]:
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if config.expandable_segments else {}


def _parse_arguments(given: Given) -> Partial:
    """TrainingArguments beside a model's name; whether adapters train is not theirs to say."""
    base = trainer.parse_arguments(given)
    settings = given.settings
    fields: dict[str, Any] = {"stack": "trainer", "method": "full"}
    origins: dict[str, Setting] = {}
    if settings.value("model_name_or_path"):
        fields["model"] = settings.text("model_name_or_path")
        origins["model"] = settings["model_name_or_path"]
    fields["padding"] = base.fields["micro_batch"] > 1
    stated = given.launch.variable("PYTORCH_ALLOC_CONF") or given.launch.variable("PYTORCH_CUDA_ALLOC_CONF")
    fields["expandable_segments"] = "expandable_segments:true" in stated.lower()
    problems = trainer.audited(given, trainer.NAME, frozenset({"model_name_or_path"}))
    return Partial(fields, origins, problems=problems).over(base)


def _emit_arguments(config: RunConfig, target: Target) -> Emitted:
    if config.trains_adapters:
        raise CannotExpressError(
            "TrainingArguments", {"method": config.method}, hint="use --format trl, which has LoRA"
        )
    main = trainer.arguments(config, target, version=target.version)
    if config.sharding in ("fsdp2", "fsdp2-grad-op"):
        main |= trainer.fsdp_arguments(config)
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    command = ("torchrun", "--standalone", "--nproc_per_node", str(target.per_node), "train.py", MAIN)
    return Emitted(main, MAIN, command, _environment(config), deepspeed=content)


DEEPSPEED: Final = Format("deepspeed", "DeepSpeed", "deepspeed", _parse_deepspeed, _emit_deepspeed)
ACCELERATE: Final = Format("accelerate", "accelerate", "accelerate", _parse_accelerate, _emit_accelerate)
TRANSFORMERS: Final = Format("transformers", "transformers", "transformers", _parse_arguments, _emit_arguments)
