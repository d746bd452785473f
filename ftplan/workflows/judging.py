"""The verdict on a configuration: memory by phase, whether it suffices, and where it gives out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ftplan.estimators.analytic import estimate
from ftplan.estimators.checkpoint_shards import dies_in, shards
from ftplan.estimators.combined import worst_of
from ftplan.results import Estimate, Phase, Timeline
from ftplan.spec import RunConfig
from ftplan.verdicts import PhaseVerdict, Problem, Severity, Verdict
from ftplan.workflows.case import Case

HOPELESS: Final = 1.3
"""What needs this many times the card by the closed form needs no allocator to tell."""


@dataclass(frozen=True)
class Told:
    """The estimate of training, and the bytes of an evaluation that has a micro-batch of its own."""

    estimate: Estimate
    evaluation_bytes: int | None = None


def told_of(case: Case) -> Told:
    """The estimate of ``case``; an evaluation of another micro-batch than training's is estimated by itself."""
    config = case.config
    own = int(case.part.beside.get("eval_micro_batch", config.micro_batch) or config.micro_batch)
    if not config.evaluates or own == config.micro_batch:
        return Told(_exactly(config, case))
    training = config.model_copy(update={"evaluates": False})
    told = _exactly(training, case)
    evaluation = estimate(config.model_copy(update={"micro_batch": own}), case.model, case.cluster, margin=case.margin)
    worst = worst_of(evaluation.ranks)
    return Told(told, Timeline(worst.terms).bytes_at(Phase.EVAL) + worst.process_bytes - worst.peak_reserved_bytes)


def _exactly(config: RunConfig, case: Case) -> Estimate:
    """The estimate, played through the simulated allocator unless it is far beyond the card."""
    told = estimate(config, case.model, case.cluster, margin=case.margin)
    if told.needed_bytes > HOPELESS * told.capacity_bytes:
        return told
    return estimate(config, case.model, case.cluster, margin=case.margin, replays=True)


def phases_of(case: Case, told: Told) -> tuple[PhaseVerdict, ...]:
    """The worst rank's memory by phase: its tensors and the process; at the peak what the allocator needs for them."""
    worst = worst_of(told.estimate.ranks)
    room = round(worst.capacity_bytes * (1 - case.margin))
    found = []
    for phase, expected in worst.needed_by_phase.items():
        needed = expected
        if phase is Phase.EVAL:
            if not case.config.evaluates:
                continue
            needed = expected if told.evaluation_bytes is None else told.evaluation_bytes
        found.append(PhaseVerdict(str(phase), needed, room, needed <= room))
    return tuple(found)


def verdict_of(told: Estimate, phases: Sequence[PhaseVerdict], problems: Sequence[Problem], margin: float) -> Verdict:
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


def memory_problems(case: Case, told: Told, phases: Sequence[PhaseVerdict]) -> Iterator[Problem]:
    """Where it runs out of memory: devices, hosts, evaluations of their own."""
    yield from _of_devices(case, told.estimate, phases)
    yield from _of_hosts(told.estimate)
    yield from _of_evaluations(told, phases)


def _of_devices(case: Case, told: Estimate, phases: Sequence[PhaseVerdict]) -> Iterator[Problem]:
    """The rank, the phase, and while loading the file of the checkpoint."""
    worst = worst_of(told.ranks)
    if worst.fits:
        return
    first = next((phase for phase in phases if not phase.fits), None)
    phase = first.phase if first is not None else str(worst.peak_phase)
    all_of_them = len(told.ranks) > 1 and all(not rank.fits for rank in told.ranks)
    short = worst.needed_bytes > worst.capacity_bytes
    what = "runs out of memory" if short else f"leaves less than the margin of {case.margin:.0%} free"
    where = _shard(case, told) if phase == "load" else ""
    yield Problem(
        "memory",
        Severity.ERROR if short else Severity.WARNING,
        f"{'every rank' if all_of_them else f'rank {worst.rank}'} {what} on {worst.device} in phase {phase}{where}",
        needed_bytes=worst.needed_bytes,
        available_bytes=worst.capacity_bytes,
    )


def _of_hosts(told: Estimate) -> Iterator[Problem]:
    host = told.host
    if host.fits:
        return
    less = "fewer ranks on a host, less offload"
    yield Problem(
        "host-memory",
        Severity.ERROR,
        f"a host runs out of RAM in phase {host.needed_phase}: the system would kill it (exit -9)",
        hint=f"{less}, or state its RAM with --host-memory" if host.capacity_assumed else f"more RAM, {less}",
        needed_bytes=host.needed_bytes,
        available_bytes=host.capacity_bytes,
    )


def _of_evaluations(told: Told, phases: Sequence[PhaseVerdict]) -> Iterator[Problem]:
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


def _shard(case: Case, told: Estimate) -> str:
    """In which file of the checkpoint the card is full."""
    worst = worst_of(told.ranks)
    room = worst.capacity_bytes - (worst.process_bytes - worst.peak_reserved_bytes)
    files = shards(case.model)
    loaded = Timeline(worst.terms).bytes_at(Phase.LOAD)
    at = dies_in(loaded, room, files)
    if at is None:
        return ""
    about = "" if files.known else "about "
    every = " on every rank, because nothing shards it" if case.config.sharding in ("ddp", "zero1", "zero2") else ""
    return f": loading a whole copy{every}, the card is full in shard {at} of {about}{files.count}"
