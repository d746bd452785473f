"""Preflight: whether this machine can do a run now. ``ftplan doctor`` asks in full, every run the quick part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ftplan.errors import DoesNotFitError, InputError
from ftplan.estimators.analytic import estimate as analytic_estimate
from ftplan.estimators.checkpoint_size import checkpoint_size
from ftplan.estimators.workload import Workload
from ftplan.launcher import engine
from ftplan.launcher.job import Source, TrainJob
from ftplan.launcher.preflight import environment, machine
from ftplan.launcher.preflight.checks import judge
from ftplan.launcher.preflight.data_checks import check_lengths
from ftplan.launcher.preflight.facts import Facts, Installed, Torch
from ftplan.launcher.preflight.findings import DATA, FITTING, Finding, Status, errors, worst
from ftplan.launcher.preflight.installed import COMPILED, installed
from ftplan.launcher.preflight.needs import Needs
from ftplan.launcher.records import RunDir
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.rules import needed_packages
from ftplan.profiles.cards_now import cards_now
from ftplan.profiles.models import load_model
from ftplan.profiles.schema import Cluster
from ftplan.results import Estimate, Plan
from ftplan.spec import RunConfig
from ftplan.workflows import running
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.planning import load_plan, require_config

if TYPE_CHECKING:
    from ftplan.launcher.lengths import LengthReport

TOKENIZER_FILES: Final = ("tokenizer*", "vocab*", "merges.txt", "chat_template*", "special_tokens_map.json")

_CHECK_OF_FIELD: Final[Mapping[str, str]] = {"data": DATA, "model": "weights"}


@dataclass(frozen=True)
class Subject:
    """What is examined: the machine, and where there is one, a plan and the job made of it.

    ``problems`` are what kept a job from being made.
    """

    run_dir: Path
    plan: Plan | None = None
    job: TrainJob | None = None
    keep: int = TrainJob.model_fields["save_total_limit"].default
    problems: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Examination:
    """What ``ftplan doctor`` found: the gravest status, each finding, and the lengths of the data, if it was read."""

    status: Status
    findings: tuple[Finding, ...]
    lengths: LengthReport | None = field(default=None)


def of_machine(run_dir: Path | None = None) -> Subject:
    """The machine alone; runs would be kept in ``run_dir``."""
    return Subject(run_dir or running.DEFAULT_RUNS)


def of_plan(plan: Plan, settings: running.RunSettings) -> Subject:
    """A plan, and with data the job that a run would make of it."""
    keep = settings.hyperparameters.get("save_total_limit", Subject.keep)
    run_dir = settings.run_dir or running.DEFAULT_RUNS
    if not settings.data:
        return Subject(run_dir, plan, keep=keep)
    try:
        job = running.ready(plan, settings, force=True).job
    except InputError as error:
        check = _CHECK_OF_FIELD.get(error.field, error.field or "plan")
        return Subject(run_dir, plan, keep=keep, problems=(Finding(check, Status.ERROR, error.message, error.hint),))
    return Subject(run_dir, plan, job, keep)


def of_run(folder: Path) -> Subject:
    """A run that was launched, as it would be resumed."""
    run = RunDir(folder)
    job = engine.load_job(run)
    return Subject(folder, load_plan(run.plan) if run.plan.exists() else None, job, job.save_total_limit)


def examine(subject: Subject) -> Examination:
    """Everything: asks torch, and reads and tokenizes the data; takes some seconds."""
    needs = _needs(subject)
    packages = installed()
    torch, problem = None, ""
    if "torch" in packages.versions:
        wanted = needs.packages if needs else ()
        modules = [COMPILED[name] for name in wanted if name in COMPILED and name in packages.versions]
        torch, problem = environment.ask_torch(modules)
    found = [*subject.problems, *judge(_facts(subject, packages, torch, problem), needs)]
    lengths = None
    if subject.job is not None and torch is not None:
        try:
            lengths = _lengths(subject.job)
            found += check_lengths(lengths)
        except InputError as error:
            found.append(Finding(DATA, Status.ERROR, error.message, error.hint))
    return Examination(worst(found), tuple(found), lengths)


def before_run(job: TrainJob, plan: Plan | None) -> tuple[Finding, ...]:
    """The part that costs no process: what would keep ``job`` from running here and now."""
    subject = Subject(Path(job.run_dir), plan, job, job.save_total_limit)
    return judge(_facts(subject, installed(), None, ""), _needs(subject))


def refuse(findings: Sequence[Finding]) -> None:
    """Raise for findings that are errors: InputError if something is missing, DoesNotFitError if it does not fit."""
    grave = errors(findings)
    if not grave:
        return
    names = ", ".join(dict.fromkeys(finding.check for finding in grave))
    hint = "--force starts it all the same; ftplan doctor looks closer"
    if all(finding.check in FITTING for finding in grave):
        raise DoesNotFitError(f"the run does not fit here now: {names}", hint=hint)
    raise InputError(f"the run cannot start here: {names}", hint=hint)


def _lengths(job: TrainJob) -> LengthReport:
    from ftplan.launcher.preflight import data_lengths

    return data_lengths.measured(job)


def _facts(subject: Subject, packages: Installed, torch: Torch | None, problem: str) -> Facts:
    return Facts(
        host=machine.host(),
        installed=packages,
        cards=cards_now(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch=torch,
        torch_problem=problem,
        disk=machine.disk(subject.run_dir),
    )


def _needs(subject: Subject) -> Needs | None:
    if subject.plan is not None:
        config, estimate = require_config(subject.plan)
        return _needs_of(config, estimate, known_cluster(subject.plan.request.inventory), subject)
    if subject.job is None:
        return None
    config, cluster = subject.job.config, known_cluster(parse_inventory(subject.job.inventory))
    estimate = analytic_estimate(config, load_model(config.model), cluster, replays=True)
    return _needs_of(config, estimate, cluster, subject)


def _needs_of(config: RunConfig, estimate: Estimate, cluster: Cluster, subject: Subject) -> Needs:
    work = Workload(config, load_model(config.model), cluster)
    tokenizer = subject.job.tokenizer if subject.job else None
    return Needs(
        config=config,
        card_bytes=() if work.on_cpu else tuple(rank.needed_bytes for rank in estimate.ranks[: work.ranks_per_node]),
        host_bytes=estimate.host.needed_bytes,
        packages=needed_packages(config),
        size=checkpoint_size(work, tokenizer_bytes=_tokenizer_bytes(tokenizer)),
        keep=subject.keep,
        nodes=len(cluster.nodes),
    )


def _tokenizer_bytes(source: Source | None) -> int | None:
    """Size of the tokenizer's files where they are on this machine."""
    if source is None or source.kind == "hub":
        return None
    folder = Path(source.location)
    return sum(path.stat().st_size for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file())
