"""The analytic estimator: closed forms over a model profile, microseconds a configuration, without torch."""

from __future__ import annotations

from dataclasses import replace

from ftplan.estimators import host as host_memory
from ftplan.estimators.activations import Layers
from ftplan.estimators.combined import combined
from ftplan.estimators.params import expert_targets, total_params, trainable_params
from ftplan.estimators.runtime import deepspeed_bytes, fsdp_bytes, nccl_bytes, needed_bytes, reserved_bytes
from ftplan.estimators.step_time import step_time
from ftplan.estimators.timeline import device_terms, short_lived
from ftplan.estimators.workload import Place, Workload
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
    host = host_memory.host_estimate(work, layers)
    params = (total_params(model), trainable_params(model, config))
    return combined("analytic", work, ranks, host, step_time(work, layers), params, _notes(work))


def _rank_estimates(work: Workload, layers: Layers, margin: float) -> tuple[RankEstimate, ...]:
    """Every rank's estimate; equal cards are estimated once."""
    by_card: dict[tuple[str, int], RankEstimate] = {}
    ranks = []
    for rank, gpu in enumerate(work.cluster.gpus[: work.world]):
        card = (gpu.name, gpu.usable_bytes)
        if card not in by_card:
            by_card[card] = _rank_estimate(work, layers, gpu, margin)
        ranks.append(replace(by_card[card], rank=rank))
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


def process_terms(work: Place, gpu: GpuProfile) -> tuple[Term, ...]:
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


def _expert_notes(work: Workload) -> list[str]:
    """What users of mixtures of experts do not expect of 4-bit loading and of peft's all-linear."""
    experts = [group.layer.mlp.experts for group in work.model.groups if group.layer.mlp.experts]
    notes = []
    if experts and work.quantized:
        notes.append("bitsandbytes packs linear modules only: the fused experts stay in 16 bit")
    if work.config.trains_adapters and any(expert_targets(group.layer, work.config) for group in work.model.groups):
        notes.append(
            f"{work.config.lora_targets} reaches the fused experts, an adapter for each of them; "
            "target the attention's modules to train far fewer parameters"
        )
    return notes


def _notes(work: Workload) -> tuple[str, ...]:
    notes = []
    if work.config.sharding == "none" and work.cluster.world_size > 1:
        notes.append(f"sharding none runs one process: {work.cluster.world_size - 1} devices stay idle")
    if work.is_fsdp and work.config.offload == "optimizer":
        notes.append("FSDP2 offloads parameters, gradients and optimizer states together")
    names = {gpu.name for gpu in work.cluster.gpus[: work.world]}
    if len(names) > 1:
        notes.append(f"unequal cards ({', '.join(sorted(names))}): every step waits for the slowest")
    if len(work.cluster.nodes) > 1:
        notes.append("several nodes: ftplan run starts one machine; start the same job on each")
    notes += _expert_notes(work)
    if work.model.vision is not None:
        notes.append("text-only samples: the vision tower is counted as weights, not run")
    return tuple(notes)
