"""What a process takes on the device beside tensors: cuBLAS workspaces, allocator, context, NCCL, DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping

from ftplan.estimators.workload import Place, Workload
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.runtime import Figure, runtime_figure


def workspace_bytes(gpu: GpuProfile, work: Workload) -> Figure:
    """cuBLAS workspaces of the forward and the backward thread, from the caching allocator.

    Products with a bias take cuBLASLt's beside; checkpointing runs them in the backward thread too.
    """
    if gpu.kind == "cpu":
        return Figure(0, "no cuBLAS on a CPU")
    hopper = gpu.compute_capability == (9, 0)
    one = runtime_figure("workspace_bytes", "hopper" if hopper else "other")
    biased = not work.quantized and work.model.has_biases
    with_bias = (1 + work.config.gradient_checkpointing) * biased
    return Figure(2 * one.value + with_bias * runtime_figure("workspace_bytes", "with_bias").value, one.source)


def nccl_bytes(gpu: GpuProfile, work: Place) -> Figure:
    """Communicators of a run on several GPUs, as calibrated on such a card where that was done."""
    if work.world == 1 or gpu.kind == "cpu":
        return Figure(0, "one process")
    if gpu.nccl_bytes is not None:
        return Figure(gpu.nccl_bytes, "ftplan calibrate")
    return runtime_figure("nccl_bytes")


def fsdp_bytes(gpu: GpuProfile, work: Place) -> Figure:
    """Further communicators under FSDP2, in our own engine's loop."""
    if not work.is_fsdp or work.world == 1 or gpu.kind == "cpu" or work.config.stack != "trl":
        return Figure(0, "no FSDP2 of our own engine")
    return runtime_figure("fsdp_engine_bytes")


def deepspeed_bytes(gpu: GpuProfile, work: Place) -> Figure:
    """DeepSpeed's own memory outside the caching allocator; on one card it makes a process group too."""
    if not work.zero_stage or gpu.kind == "cpu":
        return Figure(0, "no DeepSpeed")
    return runtime_figure("deepspeed_bytes", f"{work.zero_stage}{' on one card' if work.world == 1 else ''}")


def paging_bytes(gpu: GpuProfile, work: Place) -> Figure:
    """What bitsandbytes' paged optimizers take on the device for paging."""
    if not work.config.optimizer.startswith("paged_") or gpu.kind == "cpu":
        return Figure(0, "no paged optimizer")
    return runtime_figure("paging_bytes")


def reserved_bytes(allocated: int, short_lived: Mapping[str, int], gpu: GpuProfile, work: Workload) -> int:
    """Peak reserved by the caching allocator with room to spare.

    Segments that were cut for one tensor and cannot serve another stay reserved: the excess grows with the large
    tensors that come and go in a step. ``short_lived`` maps their kinds (keys of ``reserved`` in runtime.json) to
    bytes.
    """
    if gpu.kind == "cpu":
        return allocated
    excess = sum(size * runtime_figure("reserved", kind).value for kind, size in short_lived.items())
    if work.config.expandable_segments:
        excess *= runtime_figure("reserved", "expandable").value
    return allocated + round(excess)


def needed_bytes(allocated: int, static: int, reserved: int, gpu: GpuProfile, work: Workload) -> int:
    """What the allocator must be able to reserve for the run to survive.

    With expandable segments a slack over what comes and goes (``allocated`` less the ``static`` weights), as capped
    runs showed, and more where side streams hold memory that the main one cannot take. With the default allocator what
    it would reserve unhindered and a slack on it, because fragments decide: capped runs failed at 1.05 times the
    tensors.
    """
    if gpu.kind == "cpu":
        return allocated
    sharded = work.is_fsdp or work.zero_stage
    slack = runtime_figure("expandable_slack_sharded" if sharded else "expandable_slack").value
    if work.config.expandable_segments:
        return allocated + round(slack * (allocated - static))
    return round(reserved * (1 + runtime_figure("default_slack").value))
