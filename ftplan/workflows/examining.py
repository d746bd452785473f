"""``ftplan doctor``: the whole preflight, of this machine, of a plan, or of a run as it would be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.launcher import engine
from ftplan.launcher.job import TrainJob
from ftplan.launcher.lengths import LengthReport
from ftplan.launcher.preflight import data_lengths, environment
from ftplan.launcher.preflight.checks import judge
from ftplan.launcher.preflight.data_checks import check_lengths
from ftplan.launcher.preflight.facts import Facts
from ftplan.launcher.preflight.findings import DATA, WEIGHTS, Finding, Status, worst
from ftplan.launcher.preflight.installed import COMPILED
from ftplan.launcher.preflight.needs import Needs
from ftplan.launcher.preflight.weights import check_weights
from ftplan.launcher.records import RunDir
from ftplan.results import Plan
from ftplan.workflows import preflight, promises, running
from ftplan.workflows.planning import require_config

DEFAULT_KEEP: Final[int] = TrainJob.model_fields["save_total_limit"].default
_CHECK_OF_FIELD: Final[Mapping[str, str]] = {"data": DATA, "model": WEIGHTS}


@dataclass(frozen=True)
class Subject:
    """What is examined: the machine, and where there is a run, what it needs and its job.

    ``problems`` are what kept a job from being made.
    """

    run_dir: Path
    needs: Needs | None = None
    job: TrainJob | None = None
    problems: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Examination:
    """What was found: the gravest status, each finding, and the lengths of the data's rows, if there were data."""

    status: Status
    findings: tuple[Finding, ...]
    lengths: LengthReport | None = None


def of_machine(run_dir: Path | None = None) -> Subject:
    """The machine alone; runs would be kept in ``run_dir``."""
    return Subject(run_dir or running.DEFAULT_RUNS)


def of_plan(plan: Plan, settings: running.RunSettings) -> Subject:
    """A plan, and with data the job that a run would make of it; raises DoesNotFitError if it has no configuration."""
    keep = settings.hyperparameters.get("save_total_limit", DEFAULT_KEEP)
    subject = Subject(settings.run_dir or running.DEFAULT_RUNS, preflight.needs_of_plan(plan, keep=keep))
    try:
        if not settings.data:
            config, _ = require_config(plan)
            source = running.weights_source(settings.weights or config.model)
            return replace(subject, problems=tuple(check_weights(source)))
        ready = running.ready(plan, settings, force=True)
    except InputError as error:
        check = _CHECK_OF_FIELD.get(error.field, error.field or "plan")
        return replace(subject, problems=(Finding(check, Status.ERROR, error.message, error.hint),))
    return replace(subject, job=ready.job, needs=preflight.needs_of_job(ready.job, ready.plan.estimate))


def of_run(folder: Path) -> Subject:
    """A run that was launched, as it would be resumed."""
    run = RunDir(folder)
    job = engine.load_job(run)
    return Subject(folder, preflight.needs_of_job(job, promises.kept(job)), job)


def examine(subject: Subject) -> Examination:
    """Everything: asks torch, and reads and tokenizes the data; takes some seconds."""
    facts = _with_torch(preflight.observed(subject.run_dir), subject.needs)
    found = [*subject.problems, *judge(facts, subject.needs)]
    if subject.job is not None:
        found += check_weights(subject.job.model)
    lengths = None
    if subject.job is not None and facts.torch is not None:
        try:
            lengths = data_lengths.measured(subject.job)
            found += check_lengths(lengths)
        except InputError as error:
            found.append(Finding(DATA, Status.ERROR, error.message, error.hint))
    return Examination(worst(found), tuple(found), lengths)


def _with_torch(facts: Facts, needs: Needs | None) -> Facts:
    """``facts`` with what torch says, and whether packages with compiled parts go with it."""
    there = facts.installed.versions
    if "torch" not in there:
        return facts
    wanted = needs.packages if needs else ()
    torch, problem = environment.ask_torch([COMPILED[name] for name in wanted if name in COMPILED and name in there])
    return replace(facts, torch=torch, torch_problem=problem)
