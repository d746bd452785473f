"""An estimate's basis beside the packaged figures, and what recorded runs change about it."""

from __future__ import annotations

from dataclasses import replace

from ftplan.estimators.workload import Place
from ftplan.results import Basis, StepTime


def basis_of(place: Place) -> Basis:
    """Which devices were calibrated, and what runs on them taught about runs of this kind."""
    cluster = place.cluster
    ratio, runs = cluster.history.step_ratios.get(place.world, (1.0, 0))
    return Basis(
        devices=cluster.device_names,
        calibrations=cluster.calibrations,
        step_ratio=ratio,
        step_runs=runs,
        excess_bytes=excess_bytes(place),
    )


def excess_bytes(place: Place) -> int:
    """The most that a recorded run with these ranks, method, sharding and offload took over its prediction."""
    config = place.config
    return place.cluster.history.excess_bytes.get((place.world, config.method, config.sharding, config.offload), 0)


def corrected(step: StepTime, basis: Basis) -> StepTime:
    """``step`` with every part as much slower as recorded runs were."""
    ratio = basis.step_ratio
    if ratio == 1.0:
        return step
    return replace(
        step,
        compute_seconds=step.compute_seconds * ratio,
        overhead_seconds=step.overhead_seconds * ratio,
        communication_seconds=step.communication_seconds * ratio,
        offload_seconds=step.offload_seconds * ratio,
        optimizer_seconds=step.optimizer_seconds * ratio,
        total_seconds=step.total_seconds * ratio,
    )
