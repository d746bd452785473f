"""Check somebody's own configuration: does it run on these devices, what is wrong with it, what would mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.estimators.analytic import estimate
from ftplan.estimators.checkpoint_shards import dies_in, shards
from ftplan.estimators.combined import worst_of
from ftplan.estimators.targets import targeted_linears
from ftplan.launcher.formats.arguments import plain_value
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Setting
from ftplan.launcher.formats.sources import Source, opened, overridden
from ftplan.planner.advice import advise
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.rules import first_rejection
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.profiles.models import catalogued_namesake, load_model
from ftplan.profiles.runtime import runtime_figure
from ftplan.profiles.schema import Cluster, ModelProfile
from ftplan.results import Advice, Candidate, Estimate, Phase, Timeline
from ftplan.spec import Inventory, PlanRequest, RunConfig
from ftplan.verdicts import NOWHERE, Check, Fix, PhaseVerdict, Place, Problem, Severity, Verdict
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.fixing import batch_fixes, fixes, waste_problems, write_fix
from ftplan.workflows.inputs import run_config
from ftplan.workflows.placing import placed
from ftplan.workflows.planning import with_links

DEFAULT_MARGIN: Final = 0.03
HOPELESS: Final = 1.3
"""What needs this many times the card by the closed form needs no allocator to tell."""
QUANTIZED_NAMES: Final = ("gptq", "awq", "aqlm", "gguf", "-fp8", "int4", "int8", "bnb-4bit", "mxfp4", "nvfp4")
"""Parts of the names of checkpoints that are already quantized."""


@dataclass(frozen=True)
class Asked:
    """What ``ftplan check`` is asked: files or a command line, the devices, and what the files leave open.

    ``fields`` of `RunConfig` take the place of what the files say; ``settings`` are in the framework's own words.
    ``was`` holds what is known of an earlier run: ``gpus``, ``samples``, ``learning_rate``. Without ``mends`` only the
    verdict is told, with neither fixes nor what could be faster.
    """

    words: Sequence[str]
    gpus: str = ""
    framework: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    margin: float = DEFAULT_MARGIN
    was: Mapping[str, Any] = field(default_factory=dict)
    host_memory_bytes: int | None = None
    link: str | None = None
    network: str | None = None
    mends: bool = True


@dataclass(frozen=True)
class Checked:
    """A check with what it takes to write its fixes."""

    check: Check
    source: Source
    files: Files
    cluster: Cluster


def write(checked: Checked, fix: Fix) -> tuple[Path, ...]:
    """Write ``fix`` into the files that were checked; raises InputError where it is no edit of theirs."""
    assert checked.check.config is not None
    return write_fix(checked.source, checked.check.config, fix, checked.cluster, checked.files)


def check(asked: Asked) -> Checked:
    """The verdict on a configuration; raises InputError for what cannot be read, or names nothing."""
    files = Files()
    source = opened(asked.words, files, asked.framework)
    if asked.settings:
        given = {key: Setting(key, plain_value(text), Place("--set")) for key, text in asked.settings.items()}
        source = overridden(source, given)
    inventory = with_links(
        parse_inventory(asked.gpus or "local", host_memory_bytes=asked.host_memory_bytes), asked.link, asked.network
    )
    there = placed(source.shape, inventory)
    part = source.understood(there.ranks)
    config = _config(part, asked, there.ranks)
    model, taken_for = _model(config.model)
    cluster = known_cluster(there.inventory)
    config = _supported_attention(config, model, part)
    config, wrong_names = _existing_targets(config, model, part)
    told = _estimated(config, part, model, cluster, asked.margin)
    problems = (
        *there.problems,
        *_launching(source, inventory, cluster, told.estimate),
        *part.problems,
        *wrong_names,
        *taken_for,
        *_named(config),
        *_conflicts(config, model, cluster),
    )
    found = _check(source, config, model, cluster, there.inventory, told, problems, part, asked, files)
    return Checked(found, source, files, cluster)


def _config(part: Partial, asked: Asked, ranks: int) -> RunConfig:
    fields = {**part.fields, **asked.fields}
    if "model" not in fields:
        hint = "give it with --model, by catalogue name or path"
        raise InputError("the configuration names no model", hint=hint, field="model")
    fields.setdefault("sharding", "ddp" if ranks > 1 else "none")
    if fields["sharding"] in ("none", "ddp"):
        fields["sharding"] = "ddp" if ranks > 1 else "none"
    return run_config({name: value for name, value in fields.items() if name in RunConfig.model_fields})


def _supported_attention(config: RunConfig, model: ModelProfile, part: Partial) -> RunConfig:
    """Where the files leave attention to transformers, what it takes: eager for architectures without sdpa."""
    origin = part.origins.get("attention")
    is_open = origin is None or origin.value in (None, "auto")
    if is_open and config.attention == "sdpa" and "sdpa" not in model.layers[0].attention.supports:
        return config.model_copy(update={"attention": "eager"})
    return config


def _existing_targets(config: RunConfig, model: ModelProfile, part: Partial) -> tuple[RunConfig, tuple[Problem, ...]]:
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


def _model(name: str) -> tuple[ModelProfile, tuple[Problem, ...]]:
    """The model called ``name``; one that is on another machine, or somebody's copy, is taken for its namesake."""
    try:
        return load_model(name), ()
    except InputError:
        namesake = catalogued_namesake(name)
        if namesake is None:
            raise
    model = load_model(namesake)
    note = Problem(
        "assumption", Severity.NOTE, f"{name} is not here: taken for {model.id}, by its name", key="model", hint=""
    )
    return model, (note,)


@dataclass(frozen=True)
class _Told:
    """The estimate of training, and the bytes of an evaluation that has a micro-batch of its own."""

    estimate: Estimate
    evaluation_bytes: int | None = None


def _estimated(config: RunConfig, part: Partial, model: ModelProfile, cluster: Cluster, margin: float) -> _Told:
    own = int(part.beside.get("eval_micro_batch", config.micro_batch) or config.micro_batch)
    if not config.evaluates or own == config.micro_batch:
        return _Told(_exactly(config, model, cluster, margin))
    training = config.model_copy(update={"evaluates": False})
    told = _exactly(training, model, cluster, margin)
    evaluation = estimate(config.model_copy(update={"micro_batch": own}), model, cluster, margin=margin)
    worst = worst_of(evaluation.ranks)
    return _Told(told, Timeline(worst.terms).bytes_at(Phase.EVAL) + worst.process_bytes - worst.peak_reserved_bytes)


def _exactly(config: RunConfig, model: ModelProfile, cluster: Cluster, margin: float) -> Estimate:
    """The estimate, played through the simulated allocator unless it is far beyond the card."""
    told = estimate(config, model, cluster, margin=margin)
    if told.needed_bytes > HOPELESS * told.capacity_bytes:
        return told
    return estimate(config, model, cluster, margin=margin, replays=True)


def _check(
    source: Source,
    config: RunConfig,
    model: ModelProfile,
    cluster: Cluster,
    inventory: Inventory,
    told: _Told,
    problems: tuple[Problem, ...],
    part: Partial,
    asked: Asked,
    files: Files,
) -> Check:
    estimated = told.estimate
    phases = _phases(config, told, asked.margin)
    verdict = _verdict(estimated, phases, problems, asked.margin)
    found = [*_memory(config, estimated, model, phases, asked.margin), *_evaluating(told, phases), *problems]
    mending: tuple[Fix, ...] = batch_fixes(source, config, estimated, model, cluster, asked.margin, files, asked.was)
    is_short = not estimated.fits or verdict is Verdict.OOM
    if asked.mends and (is_short or first_rejection(config, model, cluster) is not None):
        own = any(phase.phase == str(Phase.EVAL) and not phase.fits for phase in phases)
        own = own and told.evaluation_bytes is not None
        mending += fixes(source, config, estimated, model, cluster, asked.margin, files, evaluation=own)
    elif asked.mends:
        found += waste_problems(source, config, estimated, model, cluster, asked.margin)
    global_batch = config.micro_batch * config.accumulation * (1 if config.sharding == "none" else cluster.world_size)
    return Check(
        framework=source.format.name,
        version=load_vocabulary(source.format.vocabulary).version,
        files=tuple(files.read),
        inventory=inventory.text,
        ranks=len(estimated.ranks),
        global_batch=global_batch,
        config=config,
        estimate=estimated,
        verdict=verdict,
        phases=phases,
        problems=tuple(sorted(found, key=lambda each: list(Severity).index(each.severity))),
        fixes=mending,
        advice=_advice(config, estimated, model, cluster, inventory, part, asked, global_batch),
    )


def _phases(config: RunConfig, told: _Told, margin: float) -> tuple[PhaseVerdict, ...]:
    """The worst rank's memory by phase: its tensors and the process; at the peak what the allocator needs for them."""
    worst = worst_of(told.estimate.ranks)
    outside = worst.process_bytes - worst.peak_reserved_bytes
    room = round(worst.capacity_bytes * (1 - margin))
    by_phase = Timeline(worst.terms).by_phase
    found = []
    for phase, tensors in by_phase.items():
        needed = worst.needed_bytes if phase == worst.peak_phase else min(tensors + outside, worst.needed_bytes)
        if phase is Phase.EVAL:
            if not config.evaluates:
                continue
            needed = told.evaluation_bytes if told.evaluation_bytes is not None else needed
        found.append(PhaseVerdict(str(phase), needed, room, needed <= room))
    return tuple(found)


def _verdict(told: Estimate, phases: Sequence[PhaseVerdict], problems: Sequence[Problem], margin: float) -> Verdict:
    """Fits only if it does with all that is not modelled counted in, oom only if it does not without it."""
    more = _bound(problem.within for problem in problems if problem.may_need_more)
    less = _bound(problem.within for problem in problems if problem.may_need_less)
    needed = max(told.needed_bytes, *(phase.bytes for phase in phases))
    capacity = told.capacity_bytes
    room = capacity * (1 - margin)
    if not told.host.fits:
        return Verdict.UNKNOWN if less is None else Verdict.OOM
    if needed > capacity:
        return Verdict.OOM if less is not None and needed * (1 - less) > capacity else Verdict.UNKNOWN
    if more is None or (more and needed * (1 + more) > capacity):
        return Verdict.UNKNOWN
    return Verdict.FITS if needed * (1 + more) <= room else Verdict.TIGHT


def _bound(parts: Iterator[float | None]) -> float | None:
    """The sum of what is not modelled as a part of the memory; None if one of it has no bound."""
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def _memory(
    config: RunConfig, told: Estimate, model: ModelProfile, phases: Sequence[PhaseVerdict], margin: float
) -> Iterator[Problem]:
    """Where it runs out of memory: the rank, the phase, and while loading the file of the checkpoint."""
    worst = worst_of(told.ranks)
    if not worst.fits:
        first = next((phase for phase in phases if not phase.fits), None)
        phase = first.phase if first is not None else str(worst.peak_phase)
        ranks = (
            "every rank" if len(told.ranks) > 1 and all(not rank.fits for rank in told.ranks) else f"rank {worst.rank}"
        )
        short = worst.needed_bytes > worst.capacity_bytes
        what = "runs out of memory" if short else f"leaves less than the margin of {margin:.0%} free"
        message = f"{ranks} {what} on {worst.device} in phase {phase}"
        where = _shard(config, told, model) if phase == "load" else ""
        yield Problem(
            "memory",
            Severity.ERROR if short else Severity.WARNING,
            message + where,
            needed_bytes=worst.needed_bytes,
            available_bytes=worst.capacity_bytes,
        )
    if not told.host.fits:
        yield Problem(
            "host-memory",
            Severity.ERROR,
            f"a host runs out of RAM in phase {told.host.needed_phase}: the system would kill it (exit -9)",
            hint="fewer ranks on a host, less offload, or state its RAM with --host-memory"
            if told.host.capacity_assumed
            else "more RAM, fewer ranks on a host, less offload",
            needed_bytes=told.host.needed_bytes,
            available_bytes=told.host.capacity_bytes,
        )


def _evaluating(told: _Told, phases: Sequence[PhaseVerdict]) -> Iterator[Problem]:
    """An evaluation whose own micro-batch is too large; one of training's is in the estimate of training."""
    evaluation = next((phase for phase in phases if phase.phase == str(Phase.EVAL) and not phase.fits), None)
    if evaluation is not None and told.evaluation_bytes is not None:
        yield Problem(
            "memory",
            Severity.ERROR if evaluation.bytes > told.estimate.capacity_bytes else Severity.WARNING,
            "the evaluation runs out of memory in phase eval, with a micro-batch of its own",
            hint="a smaller per_device_eval_batch_size",
            key="per_device_eval_batch_size",
            needed_bytes=evaluation.bytes,
            available_bytes=told.estimate.capacity_bytes,
        )


def _shard(config: RunConfig, told: Estimate, model: ModelProfile) -> str:
    """In which file of the checkpoint the card is full."""
    worst = worst_of(told.ranks)
    room = worst.capacity_bytes - (worst.process_bytes - worst.peak_reserved_bytes)
    files = shards(model)
    loaded = Timeline(worst.terms).bytes_at(Phase.LOAD)
    at = dies_in(loaded, room, files)
    if at is None:
        return ""
    about = "" if files.known else "about "
    every = " on every rank, because nothing shards it" if config.sharding in ("ddp", "zero1", "zero2") else ""
    return f": loading a whole copy{every}, the card is full in shard {at} of {about}{files.count}"


def _launching(source: Source, inventory: Inventory, cluster: Cluster, told: Estimate) -> Iterator[Problem]:
    """What one process takes beside itself: other cards in sight, or a process group of its own."""
    launch = source.given.launch
    in_sight = len(launch.visible) if launch.visible is not None else inventory.devices_per_node
    if source.is_alone and in_sight > 1:
        refuses = source.format.name == "llamafactory"
        yield Problem(
            "conflict" if refuses else "unmodelled",
            Severity.ERROR if refuses else Severity.WARNING,
            "one process sees several GPUs: "
            + (
                "LLaMA-Factory refuses that"
                if refuses
                else "transformers' Trainer splits each batch over them (DataParallel)"
            ),
            hint="start it with torchrun or accelerate launch, or show it one card with CUDA_VISIBLE_DEVICES=0",
            source="LLaMA-Factory hparams/parser.py" if refuses else "transformers trainer.py, args.n_gpu > 1",
            may_need_more=not refuses,
            may_need_less=not refuses,
        )
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


def _named(config: RunConfig) -> Iterator[Problem]:
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


def _conflicts(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Iterator[Problem]:
    rejection = first_rejection(config, model, cluster)
    if rejection is not None:
        yield Problem("conflict", Severity.ERROR, rejection.reason, hint=rejection.hint, source=rejection.source)


def _advice(
    config: RunConfig,
    told: Estimate,
    model: ModelProfile,
    cluster: Cluster,
    inventory: Inventory,
    part: Partial,
    asked: Asked,
    global_batch: int,
) -> tuple[Advice, ...]:
    """The learning rate and batch against those of an earlier run, unequal cards."""
    was = dict(asked.was)
    if was:
        if part.beside.get("learning_rate") and "learning_rate" not in was:
            was["learning_rate"] = part.beside["learning_rate"]
        was |= {"micro_batch": config.micro_batch, "accumulation": config.accumulation}
        was.setdefault("samples", config.micro_batch * config.accumulation * int(was.get("gpus", 1)))
    request = PlanRequest.model_validate(
        {
            "model": config.model,
            "inventory": inventory,
            "global_batch": global_batch,
            "seq_len": config.seq_len,
            "was": was or None,
        }
    )
    found = advise(Candidate(config, told), request, model, cluster)
    return tuple(replace(each, text=each.text) for each in found)
