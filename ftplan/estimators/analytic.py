"""The analytic estimator: closed forms over a model profile, microseconds a configuration, without torch."""

from __future__ import annotations

from ftplan.estimators import host as host_memory
from ftplan.estimators.activations import Layers
from ftplan.estimators.params import total_params, trainable_params
from ftplan.estimators.runtime import deepspeed_bytes, fsdp_bytes, nccl_bytes, needed_bytes, reserved_bytes
from ftplan.estimators.step_time import step_time
from ftplan.estimators.timeline import device_terms, short_lived
from ftplan.estimators.workload import Workload
from ftplan.profiles.schema import Cluster, GpuProfile, ModelProfile
from ftplan.results import Estimate, Phase, Provenance, RankEstimate, Term, Timeline
from ftplan.spec import RunConfig


def estimate(config: RunConfig, model: ModelProfile, cluster: Cluster, *, margin: float = 0.0) -> Estimate:
    """Memory of every rank and host, and the time of a step.

    ``margin`` is the part of each card that is kept free: a configuration fits if the worst rank needs at most
    ``(1 - margin)`` of what its card offers and the host's RAM suffices. Raises InputError for an option that names
    nothing (optimizer, LoRA targets).
    """
    work = Workload(config, model, cluster)
    layers = Layers.of(work)
    ranks = _rank_estimates(work, layers, margin)
    worst = max(ranks, key=lambda rank: rank.needed_bytes - rank.capacity_bytes)
    host = host_memory.host_estimate(work, layers)
    time = step_time(work, layers)
    tokens = work.tokens * config.accumulation * work.world
    return Estimate(
        estimator="analytic",
        peak_allocated_bytes=worst.peak_allocated_bytes,
        peak_reserved_bytes=worst.peak_reserved_bytes,
        process_bytes=worst.process_bytes,
        needed_bytes=worst.needed_bytes,
        host_bytes=host.peak_bytes,
        capacity_bytes=worst.capacity_bytes,
        fits=all(rank.fits for rank in ranks) and host.fits,
        peak_phase=worst.peak_phase,
        step_seconds=time.total_seconds,
        tokens_per_second=tokens / time.total_seconds,
        total_params=total_params(model),
        trainable_params=trainable_params(model, config),
        provenance=Provenance.worst(term.provenance for term in worst.terms),
        terms=worst.terms,
        ranks=ranks,
        host=host,
        step=time,
        notes=_notes(work),
    )


def _rank_estimates(work: Workload, layers: Layers, margin: float) -> tuple[RankEstimate, ...]:
    """Every rank's estimate; equal cards are estimated once."""
    by_card: dict[tuple[str, int], RankEstimate] = {}
    ranks = []
    for rank, gpu in enumerate(work.cluster.gpus[: work.world]):
        card = (gpu.name, gpu.usable_bytes)
        if card not in by_card:
            by_card[card] = _rank_estimate(work, layers, gpu, margin)
        ranks.append(_numbered(by_card[card], rank))
    return tuple(ranks)


def _rank_estimate(work: Workload, layers: Layers, gpu: GpuProfile, margin: float) -> RankEstimate:
    terms = device_terms(work, layers, gpu)
    timeline = Timeline(terms)
    peak_phase, allocated = timeline.peak
    reserved = reserved_bytes(allocated, short_lived(work, timeline), gpu, work)
    outside = process_terms(work, gpu)
    beside = sum(term.bytes for term in outside)
    static = timeline.held_through_bytes
    needed = needed_bytes(allocated, static, reserved, gpu, work) + beside
    return RankEstimate(
        rank=0,
        device=gpu.name,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        process_bytes=reserved + beside,
        needed_bytes=needed,
        capacity_bytes=gpu.usable_bytes,
        fits=needed <= gpu.usable_bytes * (1 - margin),
        peak_phase=peak_phase,
        terms=terms,
    )


def process_terms(work: Workload, gpu: GpuProfile) -> tuple[Term, ...]:
    """What the process takes on the device outside the caching allocator, in every phase."""
    on_device = "CUDA context and libraries" if gpu.kind != "cpu" else "Python and the training libraries"
    known = Provenance.MEASURED if gpu.context_provenance == "measured" else Provenance.ASSUMED
    terms = [Term("context", gpu.context_bytes, tuple(Phase), on_device, gpu.source, known)]
    figures = {
        "NCCL": nccl_bytes(gpu, work),
        "FSDP2": fsdp_bytes(gpu, work),
        "DeepSpeed": deepspeed_bytes(gpu, work),
    }
    for name, figure in figures.items():
        if figure.value:
            terms.append(
                Term(name, int(figure.value), tuple(Phase), f"{name} outside the allocator", figure.source, known)
            )
    return tuple(terms)


def _numbered(estimated: RankEstimate, rank: int) -> RankEstimate:
    return RankEstimate(
        rank=rank,
        device=estimated.device,
        peak_allocated_bytes=estimated.peak_allocated_bytes,
        peak_reserved_bytes=estimated.peak_reserved_bytes,
        process_bytes=estimated.process_bytes,
        needed_bytes=estimated.needed_bytes,
        capacity_bytes=estimated.capacity_bytes,
        fits=estimated.fits,
        peak_phase=estimated.peak_phase,
        terms=estimated.terms,
    )


def _notes(work: Workload) -> tuple[str, ...]:
    notes = []
    if work.config.sharding == "none" and work.cluster.world_size > 1:
        notes.append(f"sharding none runs one process: {work.cluster.world_size - 1} devices stay idle")
    if work.is_fsdp and work.config.offload == "optimizer":
        notes.append("FSDP2 offloads parameters, gradients and optimizer states together")
    if work.model.vision is not None:
        notes.append("text-only samples: the vision tower is counted as weights, not run")
    return tuple(notes)
