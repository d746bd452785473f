"""Check somebody's own configuration: does it run on these devices, what is wrong with it, what would mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ftplan.errors import InputError
from ftplan.launcher.formats.arguments import plain_value
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Setting
from ftplan.launcher.formats.sources import opened, overridden
from ftplan.planner.advice import advise
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.rules import first_rejection
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.results import Advice, Candidate, Estimate, Phase
from ftplan.spec import PlanRequest, RunConfig
from ftplan.verdicts import Check, Fix, Place, Problem, Severity, Verdict
from ftplan.workflows.case import Case
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.doubts import (
    existing_layers,
    existing_targets,
    launching,
    model_called,
    quantized_already,
    refused,
    supported_attention,
    unstated,
)
from ftplan.workflows.fixing import batch_fixes, fixes, waste_problems, write_fix
from ftplan.workflows.inputs import input_error, run_config
from ftplan.workflows.judging import Told, memory_problems, phases_of, told_of, verdict_of
from ftplan.workflows.placing import placed
from ftplan.workflows.planning import with_links

DEFAULT_MARGIN: Final = 0.03


@dataclass(frozen=True)
class Asked:
    """What ``ftplan check`` is asked: files or a command line, the devices, and what the files leave open.

    ``fields`` of `RunConfig` take the place of what the files say; ``settings`` are in the framework's own words.
    ``was`` holds what is known of an earlier run: ``gpus``, ``samples``, ``learning_rate``. Without ``mends`` only the
    verdict is told, with neither fixes nor what could be faster.

    With ``texts``, files by name, nothing else is read: for what was pasted or dropped into a page. Then models are
    those of the catalogue alone if ``only_catalogue``.
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
    texts: Mapping[Path, str] | None = None
    only_catalogue: bool = False


@dataclass(frozen=True)
class Checked:
    """A check with what it takes to write its fixes."""

    check: Check
    case: Case


def write(checked: Checked, fix: Fix) -> tuple[Path, ...]:
    """Write ``fix`` into the files that were checked; raises InputError where it is no edit of theirs."""
    return write_fix(checked.case, fix)


def check(asked: Asked) -> Checked:
    """The verdict on a configuration; raises InputError for what cannot be read, or names nothing."""
    files = Files(asked.texts, closed=asked.texts is not None)
    source = opened(asked.words, files, asked.framework)
    if asked.settings:
        given = {key: Setting(key, plain_value(text), Place("--set")) for key, text in asked.settings.items()}
        source = overridden(source, given)
    inventory = with_links(
        parse_inventory(asked.gpus or "local", host_memory_bytes=asked.host_memory_bytes), asked.link, asked.network
    )
    if not asked.gpus and inventory.groups[0].device == "cpu":
        hint = (
            "say on which cards it is to run: --gpus 2x24GB, --gpus 8xRTX4090, or --gpus local for this machine's CPU"
        )
        raise InputError("this machine has no GPU to check for", hint=hint, field="gpus")
    there = placed(source.shape, inventory)
    part = source.understood(there.ranks)
    config = _config(part, asked, there.ranks)
    model, taken_for = model_called(config.model, only_catalogue=asked.only_catalogue)
    config, wrong_names = existing_targets(supported_attention(config, model, part), model, part)
    config, wrong_layers = existing_layers(config, model, part)
    cluster = known_cluster(there.inventory)
    case = Case(source, files, part, config, model, cluster, there.inventory, asked.margin, asked.was)
    told = told_of(case)
    problems = (
        *there.problems,
        *launching(source, inventory, cluster, told.estimate),
        *unstated(part, asked.fields),
        *part.problems,
        *wrong_names,
        *wrong_layers,
        *taken_for,
        *quantized_already(config),
        *refused(config, model, cluster),
    )
    return Checked(_answer(case, told, problems, mends=asked.mends), case)


def _config(part: Partial, asked: Asked, ranks: int) -> RunConfig:
    fields = {**part.fields, **asked.fields}
    if "model" not in fields:
        hint = "give it with --model, by catalogue name or path"
        raise InputError("the configuration names no model", hint=hint, field="model")
    fields.setdefault("sharding", "ddp" if ranks > 1 else "none")
    if fields["sharding"] in ("none", "ddp"):
        fields["sharding"] = "ddp" if ranks > 1 else "none"
    return run_config({name: value for name, value in fields.items() if name in RunConfig.model_fields})


def _answer(case: Case, told: Told, problems: tuple[Problem, ...], *, mends: bool) -> Check:
    estimated = told.estimate
    phases = phases_of(case, told)
    verdict = verdict_of(estimated, phases, problems, case.margin)
    found = [*memory_problems(case, told, phases), *problems]
    mending = batch_fixes(case, estimated)
    is_refused = first_rejection(case.config, case.model, case.cluster) is not None
    if mends and (is_refused or not estimated.fits or verdict is Verdict.OOM):
        evaluation = told.evaluation_bytes is not None and any(
            phase.phase == str(Phase.EVAL) and not phase.fits for phase in phases
        )
        mending += fixes(case, estimated, evaluation=evaluation)
    elif mends:
        found += waste_problems(case, estimated)
    return Check(
        framework=case.source.format.name,
        version=load_vocabulary(case.source.format.vocabulary).version,
        files=tuple(case.files.read),
        inventory=case.inventory.text,
        ranks=len(estimated.ranks),
        global_batch=case.global_batch,
        config=case.config,
        estimate=estimated,
        verdict=verdict,
        phases=phases,
        problems=tuple(sorted(found, key=lambda each: list(Severity).index(each.severity))),
        fixes=mending,
        advice=_advice(case, estimated),
    )


def _advice(case: Case, told: Estimate) -> tuple[Advice, ...]:
    """The learning rate and batch against those of an earlier run, unequal cards."""
    config, was = case.config, dict(case.was)
    if was:
        if case.part.beside.get("learning_rate") and "learning_rate" not in was:
            was["learning_rate"] = case.part.beside["learning_rate"]
        was |= {"micro_batch": config.micro_batch, "accumulation": config.accumulation}
        was.setdefault("samples", config.micro_batch * config.accumulation * int(was.get("gpus", 1)))
    asked = {
        "model": config.model,
        "inventory": case.inventory,
        "global_batch": case.global_batch,
        "seq_len": config.seq_len,
        "was": was or None,
    }
    try:
        request = PlanRequest.model_validate(asked)
    except ValidationError as error:
        raise input_error(error) from error
    return advise(Candidate(config, told), request, case.model, case.cluster)
