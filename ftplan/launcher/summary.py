"""The events of a run as a `RunRecord`: what was predicted beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from statistics import median
from typing import Final

from ftplan.launcher.events import (
    Event,
    Finished,
    FlopsCounted,
    Profiled,
    RankMemory,
    Recovering,
    Started,
    Stepped,
    Warned,
)
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import Status
from ftplan.results import CountedFlops, Measured, Recovery, RunRecord, RunWarning

WARM_UP_STEPS: Final = 2
"""Logged steps left out of the step time: kernels are chosen and memory is first reserved in them."""


def summarise(
    job: TrainJob, status: Status, events: Sequence[Event], history: Sequence[Event], wall_seconds: float
) -> RunRecord:
    """The record of one attempt: ``events`` are its own, ``history`` those of all attempts."""
    started = next((event for event in events if isinstance(event, Started)), None)
    losses = [event.loss for event in history if isinstance(event, Stepped)]
    return RunRecord(
        run_id=job.run_id,
        status=status,
        config=job.config,
        inventory=job.inventory,
        global_batch=job.global_batch,
        steps=max((event.step for event in history if isinstance(event, Stepped | Finished)), default=0),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        predicted=job.predicted,
        measured=measure(events, job.nproc_per_node),
        wall_seconds=wall_seconds,
        versions=dict(started.versions) if started else {},
        resumed_from_step=started.resumed_from_step if started else None,
        basis=job.basis,
        recoveries=tuple(
            Recovery(event.kind, event.message, event.from_step, dict(event.changed))
            for event in history
            if isinstance(event, Recovering)
        ),
        warnings=tuple(_warning(event) for event in history if isinstance(event, Warned)),
        flops=next((_counted(event) for event in reversed(history) if isinstance(event, FlopsCounted)), None),
        profiles=tuple(path for event in history if isinstance(event, Profiled) for path in event.paths),
    )


def measure(events: Iterable[Event], ranks_per_node: int) -> Measured:
    """Peaks of the worst rank (host memory: of the worst node), and the median step."""
    reports = [event for event in events if isinstance(event, Stepped | Finished)]
    memory = [rank for report in reports for rank in report.memory]
    steps = [report for report in reports if isinstance(report, Stepped)]
    steady = steps[WARM_UP_STEPS:] or steps
    return Measured(
        peak_allocated_bytes=_peak(memory, lambda rank: rank.allocated_bytes),
        peak_reserved_bytes=_peak(memory, lambda rank: rank.reserved_bytes),
        peak_process_bytes=_peak(memory, lambda rank: rank.process_bytes),
        host_bytes=max((_worst_node(report.memory, ranks_per_node) for report in reports), default=0) or None,
        step_seconds=median(step.step_seconds for step in steady) if steady else None,
        tokens_per_second=median(step.tokens_per_second for step in steady) if steady else None,
        mfu=median(known) if (known := [step.mfu for step in steady if step.mfu is not None]) else None,
    )


def _warning(event: Warned) -> RunWarning:
    return RunWarning(**{field.name: getattr(event, field.name) for field in fields(RunWarning)})


def _counted(event: FlopsCounted) -> CountedFlops:
    return CountedFlops(**{field.name: getattr(event, field.name) for field in fields(CountedFlops)})


def _peak(memory: Iterable[RankMemory], figure: Callable[[RankMemory], int | None]) -> int | None:
    return max((value for rank in memory if (value := figure(rank)) is not None), default=None)


def _worst_node(memory: Iterable[RankMemory], ranks_per_node: int) -> int:
    totals: dict[int, int] = {}
    for rank in memory:
        node = rank.rank // ranks_per_node
        totals[node] = totals.get(node, 0) + (rank.host_bytes or 0)
    return max(totals.values(), default=0)
