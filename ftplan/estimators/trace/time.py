"""The time of a step from the work that was traced, where no profile tells more."""

from __future__ import annotations

from typing import Final

from ftplan.estimators.trace.digest import Digest, Work
from ftplan.estimators.workload import Place
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Phase, Provenance, StepTime

OF_A_STEP: Final = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
NAMES: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "tf32"}


def traced_step_time(told: Digest, place: Place) -> StepTime:
    """A roofline on the slowest card: matrix products and memory traffic one after the other, or kernel launches.

    Traffic counts every operand of every kernel as read or written once.
    """
    slowest = min(place.gpus, key=lambda gpu: gpu.flops["bf16"])
    works = [told.work[phase] for phase in OF_A_STEP if phase in told.work]
    compute = sum(_compute_seconds(work, slowest) for work in works)
    launches = sum(work.kernels for work in works) * runtime_figure("step_time", "launch_per_kernel").value
    launches *= place.cluster.nodes[0].host.launch_factor
    sent = sum(sum(work.sent_bytes.values()) for work in works)
    communication = sent / (slowest.link_bytes_per_second * runtime_figure("step_time", "link_efficiency").value)
    busy = max(compute, launches)
    overlap = runtime_figure("step_time", "overlap_loss").value
    total = max(busy, communication) + overlap * min(busy, communication)
    parts = {"compute": compute, "kernel launches": launches, "communication": communication}
    return StepTime(
        compute_seconds=compute,
        overhead_seconds=launches,
        communication_seconds=communication,
        offload_seconds=0.0,
        optimizer_seconds=0.0,
        total_seconds=total,
        bound_by=max(parts, key=parts.__getitem__),
        provenance=Provenance.ASSUMED,
    )


def _compute_seconds(work: Work, gpu: GpuProfile) -> float:
    matrix = sum(flops / gpu.flops[NAMES.get(dtype, "fp32")] for dtype, flops in work.matrix_flops.items())
    efficiency = runtime_figure("step_time", "traced_matmul_efficiency").value
    return matrix / efficiency + work.bytes_moved / gpu.memory_bytes_per_second
