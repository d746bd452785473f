"""What recorded runs teach about the predictions for a cluster: how far off steps are, and memory nobody foresaw.

Only runs on the same devices count, and only those that the same version predicted from the same calibration. Records
never lower a prediction of memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from statistics import median
from typing import Final

from ftplan import __version__
from ftplan.profiles.calibration import RecordedRun
from ftplan.profiles.device_schema import Cluster
from ftplan.results import History

LEAST_RUNS: Final = 3
"""Fewer runs of one rank count say too little about the next one."""

STEP_RATIOS: Final = (0.5, 2.0)
"""Beyond these something else was wrong with a run than its prediction."""

EXCESS_TO_COUNT: Final = 0.01
"""Of the predicted process: what is measured differs by as much from run to run."""


def with_history(cluster: Cluster, runs: Iterable[RecordedRun]) -> Cluster:
    """``cluster`` with what ``runs`` on the same devices taught."""
    wanted = (cluster.device_names, tuple(one.measured_at for one in cluster.calibrations), __version__)
    same = [run for run in runs if (run.devices, run.calibrated_at, run.ftplan) == wanted]
    # A process on a CPU is mostly libraries, and what they take above a prediction says nothing of another model's.
    excess = {} if cluster.gpus[0].kind == "cpu" else _excess_bytes(same)
    return replace(cluster, history=History(_step_ratios(same), excess)) if same else cluster


def _step_ratios(runs: Iterable[RecordedRun]) -> dict[int, tuple[float, int]]:
    """Median of measured over predicted by ranks, with the number of runs."""
    ratios: dict[int, list[float]] = {}
    for run in runs:
        predicted, measured = run.predicted.step_seconds, run.measured.step_seconds
        if predicted and measured:
            ratios.setdefault(run.ranks, []).append(measured / predicted)
    least, most = STEP_RATIOS
    return {
        ranks: (min(max(median(found), least), most), len(found))
        for ranks, found in ratios.items()
        if len(found) >= LEAST_RUNS
    }


def _excess_bytes(runs: Iterable[RecordedRun]) -> dict[tuple[int, str, str, str], int]:
    """The most that a process took over its prediction, by ranks, method, sharding and offload."""
    most: dict[tuple[int, str, str, str], int] = {}
    for run in runs:
        predicted, measured = run.predicted.process_bytes, run.measured.process_bytes
        if predicted and measured and measured > (1 + EXCESS_TO_COUNT) * predicted:
            kind = (run.ranks, run.method, run.sharding, run.offload)
            most[kind] = max(most.get(kind, 0), measured - predicted)
    return most
