"""What a configuration takes for granted: its model, modules and attention, and how its processes are started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.errors import InputError, UnknownNameError
from ftplan.estimators.targets import targeted_linears
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.sources import Source
from ftplan.planner.rules import first_rejection
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import catalogued_namesake, is_catalogued, list_models, load_model
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Estimate
from ftplan.spec import Inventory, RunConfig
from ftplan.verdicts import NOWHERE, Problem, Severity

QUANTIZED_NAMES: Final = ("gptq", "awq", "aqlm", "gguf", "-fp8", "int4", "int8", "bnb-4bit", "mxfp4", "nvfp4")
"""Parts of the names of checkpoints that are already quantized."""


def model_called(name: str, *, only_catalogue: bool = False) -> tuple[ModelProfile, tuple[Problem, ...]]:
    """The model called ``name``; one that is on another machine, or somebody's copy, is taken for its namesake.

    With ``only_catalogue`` no path is looked at and the hub is not asked.
    """
    namesake = None
    if not only_catalogue or is_catalogued(name):
        try:
            return load_model(name), ()
        except InputError:
            namesake = catalogued_namesake(name)
            if namesake is None:
                raise
    namesake = namesake or catalogued_namesake(name)
    if namesake is None:
        raise UnknownNameError("model", name, (model.id for model in list_models()), field="model")
    model = load_model(namesake)
    note = Problem(
        "assumption", Severity.NOTE, f"{name} is not here: taken for {model.id}, by its name", key="model", hint=""
    )
    return model, (note,)


def unstated(part: Partial, beside: Mapping[str, Any]) -> Iterator[Problem]:
    """What decides memory and nobody said: a library's file alone names no method, length or micro-batch."""
    for name, option in (("method", "--method"), ("seq_len", "--seq-len"), ("micro_batch", "--micro-batch")):
        if name not in part.fields and name not in beside:
            usual = RunConfig.model_fields[name].default
            yield Problem(
                "unresolved",
                Severity.WARNING,
                f"these files do not say {name.replace('_', ' ')}: {usual} is taken",
                hint=f"state it with {option}",
                key=name,
                may_need_more=True,
                may_need_less=True,
            )


def supported_attention(config: RunConfig, model: ModelProfile, part: Partial) -> RunConfig:
    """Where the files leave attention to transformers, what it takes: eager for architectures without sdpa."""
    origin = part.origins.get("attention")
    is_open = origin is None or origin.value in (None, "auto")
    if is_open and config.attention == "sdpa" and "sdpa" not in model.layers[0].attention.supports:
        return config.model_copy(update={"attention": "eager"})
    return config


def existing_targets(config: RunConfig, model: ModelProfile, part: Partial) -> tuple[RunConfig, tuple[Problem, ...]]:
    """``config`` with targets that the model has: where it lacks those named, the nearest, and the refusal."""
    try:
        targeted_linears(model, config)
    except InputError as error:
        names = set(config.target_names)
        nearest = "qv" if names <= {"q_proj", "v_proj"} else "all-linear"
        origin = part.origins.get("lora_targets")
        problem = Problem(
            "conflict",
            Severity.ERROR,
            f"{error.message}: peft refuses it; the estimate is for {nearest}",
            hint=error.hint,
            key=origin.key if origin is not None else "lora_targets",
            place=origin.place if origin is not None else NOWHERE,
            source="peft 0.21 tuners/tuners_utils.py, inject_adapter: target modules not found in the base model",
        )
        return config.model_copy(update={"lora_targets": nearest}), (problem,)
    return config, ()


def existing_layers(config: RunConfig, model: ModelProfile, part: Partial) -> tuple[RunConfig, tuple[Problem, ...]]:
    """``config`` with prompts in no more layers than the model has, and peft's refusal of more."""
    if not config.trains_prompts or config.adapter_layers <= model.layer_count:
        return config, ()
    origin = part.origins.get("adapter_layers")
    problem = Problem(
        "conflict",
        Severity.ERROR,
        f"prompts in {config.adapter_layers} layers of a model with {model.layer_count}: peft refuses it; the estimate "
        "is for all of them",
        hint=f"adapter_layers {model.layer_count}",
        key=origin.key if origin is not None else "adapter_layers",
        place=origin.place if origin is not None else NOWHERE,
        source="peft 0.21.2 tuners/adaption_prompt/model.py, add_adapter",
    )
    return config.model_copy(update={"adapter_layers": model.layer_count}), (problem,)


def launching(source: Source, inventory: Inventory, cluster: Cluster, told: Estimate) -> Iterator[Problem]:
    """What one process takes beside itself: other cards in sight, or a process group of its own."""
    launch = source.given.launch
    in_sight = len(launch.visible) if launch.visible is not None else inventory.devices_per_node
    if source.is_alone and in_sight > 1:
        yield _sees_several(refuses=source.format.name == "llamafactory")
    forced = launch.variable("FORCE_TORCHRUN").lower() in ("1", "true")
    grouped = launch.launcher == "torchrun" or (launch.launcher != "python" and forced)
    if grouped and len(told.ranks) == 1 and cluster.gpus[0].kind != "cpu":
        own = runtime_figure("nccl_bytes")
        yield Problem(
            "assumption",
            Severity.NOTE,
            "a single process under torchrun makes a process group, and NCCL takes memory for it",
            hint="start one process without torchrun",
            source=own.source,
            may_need_more=True,
            within=own.value / told.needed_bytes,
        )


def _sees_several(*, refuses: bool) -> Problem:
    does = (
        "LLaMA-Factory refuses that" if refuses else "transformers' Trainer splits each batch over them (DataParallel)"
    )
    return Problem(
        "conflict" if refuses else "unmodelled",
        Severity.ERROR if refuses else Severity.WARNING,
        f"one process sees several GPUs: {does}",
        hint="start it with torchrun or accelerate launch, or show it one card with CUDA_VISIBLE_DEVICES=0",
        source="LLaMA-Factory hparams/parser.py" if refuses else "transformers trainer.py, args.n_gpu > 1",
        may_need_more=not refuses,
        may_need_less=not refuses,
    )


def quantized_already(config: RunConfig) -> Iterator[Problem]:
    """A checkpoint whose name says that it is quantized already."""
    name = config.model.lower()
    kind = next((part for part in QUANTIZED_NAMES if part in name), None)
    if kind is not None:
        yield Problem(
            "unmodelled",
            Severity.WARNING,
            f"{config.model} is quantized already ({kind.strip('-')}): its weights are estimated as told, 16 or 4 bit",
            key="model",
            may_need_more=True,
            may_need_less=True,
        )


def refused(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Iterator[Problem]:
    """What would not run on these devices, whatever its memory."""
    rejection = first_rejection(config, model, cluster)
    if rejection is not None:
        yield Problem("conflict", Severity.ERROR, rejection.reason, hint=rejection.hint, source=rejection.source)
