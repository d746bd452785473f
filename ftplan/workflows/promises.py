"""What a plan promises of a run, as the run will measure it: fields of a `TrainJob`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftplan.errors import InputError
from ftplan.estimators.model_flops import TokenFlops, peak_flops_per_second, token_flops
from ftplan.estimators.workload import Workload
from ftplan.launcher.events import RankMemory
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.planner.inventory import resolve_inventory
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import load_model
from ftplan.results import Estimate, Measured, Plan, from_json
from ftplan.spec import Inventory, RunConfig


def fields(config: RunConfig, estimate: Estimate, inventory: Inventory) -> dict[str, Any]:
    """The predicted figures of the worst rank and of each, what they rest on, and what utilisation is measured by."""
    cluster = resolve_inventory(inventory)
    on_cpu = cluster.gpus[0].kind == "cpu"
    flops, peak = _flops(config, cluster)
    mfu = None
    if flops is not None and peak is not None:
        per_token = flops.fixed + flops.per_row_token * config.seq_len
        mfu = estimate.tokens_per_second * per_token / peak
    return {
        "predicted": _worst(estimate, on_cpu=on_cpu, mfu=mfu),
        "predicted_ranks": _ranks(estimate, on_cpu=on_cpu),
        "model_flops_per_token": float(flops.fixed) if flops else None,
        "score_flops_per_token": float(flops.per_row_token) if flops else None,
        "peak_flops_per_second": peak,
        "basis": estimate.basis,
    }


def kept(job: TrainJob) -> Estimate | None:
    """What the plan beside the run says of ``job``; None where there is none that can be read, or it is of another
    configuration: the run fell back, or moved to other devices.
    """
    try:
        plan = from_json(Plan, RunDir(Path(job.run_dir)).plan.read_bytes())
    except (OSError, ValueError):
        return None
    is_of_job = plan.config == job.config and plan.request.inventory.text == job.inventory
    return plan.estimate if is_of_job else None


def _worst(estimate: Estimate, *, on_cpu: bool, mfu: float | None) -> Measured:
    """The plan's figures as a run will measure them; a CPU run has no caching allocator to ask."""
    return Measured(
        peak_allocated_bytes=None if on_cpu else estimate.peak_allocated_bytes,
        peak_reserved_bytes=None if on_cpu else estimate.peak_reserved_bytes,
        peak_process_bytes=estimate.process_bytes,
        host_bytes=estimate.host_bytes,
        step_seconds=estimate.step_seconds,
        tokens_per_second=estimate.tokens_per_second,
        mfu=mfu,
    )


def _ranks(estimate: Estimate, *, on_cpu: bool) -> tuple[RankMemory, ...]:
    return tuple(
        RankMemory(
            rank.rank,
            allocated_bytes=None if on_cpu else rank.peak_allocated_bytes,
            reserved_bytes=None if on_cpu else rank.peak_reserved_bytes,
            process_bytes=rank.process_bytes,
            host_bytes=None,
        )
        for rank in estimate.ranks
    )


def _flops(config: RunConfig, cluster: Cluster) -> tuple[TokenFlops | None, float | None]:
    """Model FLOPs of a token, and the devices' peak; None for what is unknown.

    Peaks are the data sheets': calibrated ones would turn utilisation into a part of what this machine reaches.
    """
    try:
        model = load_model(config.model)
    except InputError:  # the plan was made where the model's config.json lay, and trains here from --weights
        return None, None
    work = Workload(config, model, cluster)
    return token_flops(work), peak_flops_per_second(work)
