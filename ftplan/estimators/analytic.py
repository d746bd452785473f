"""The analytic estimator: closed forms over a model profile, microseconds a configuration, without torch."""

from __future__ import annotations

from ftplan.estimators import host as host_memory
from ftplan.estimators import sharding, states
from ftplan.estimators.combined import combined
from ftplan.estimators.params import expert_targets, total_params, trainable_params
from ftplan.estimators.recorded import excess_bytes
from ftplan.estimators.runtime import (
    deepspeed_bytes,
    fsdp_bytes,
    nccl_bytes,
    needed_bytes,
    paging_bytes,
    reserved_bytes,
)
from ftplan.estimators.step_time import step_time
from ftplan.estimators.tape.replaying import replayable, replayed
from ftplan.estimators.timeline import device_terms, evaluation_exceeds, short_lived
from ftplan.estimators.workload import Place, Workload, once
from ftplan.profiles.device_schema import Cluster, GpuProfile
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Estimate, Phase, Provenance, RankEstimate, Term, Timeline
from ftplan.spec import RunConfig


def estimate(
    config: RunConfig, model: ModelProfile, cluster: Cluster, *, margin: float = 0.0, replays: bool = False
) -> Estimate:
    """Memory of every rank and host, and the time of a step.

    ``margin`` is the part of each card that is kept free: a configuration fits if the worst rank needs at most
    ``(1 - margin)`` of what its card offers and the host's RAM suffices. Raises InputError for an option that names
    nothing (optimizer, LoRA targets).

    ``replays`` plays every allocation of a few steps through the simulated allocator, a tenth of a second that a search
    does not have: what is reserved and what is needed are then those of the real allocator, not of a fit.
    """
    work = Workload(config, model, cluster)
    ranks = _rank_estimates(work, margin, replays=replays)
    host = host_memory.host_estimate(work)
    params = (total_params(model), trainable_params(model, config))
    return combined("analytic", work, ranks, host, step_time(work), params, _notes(work, ranks))


def held_bytes(config: RunConfig, model: ModelProfile, cluster: Cluster) -> int:
    """Weights, adapters and optimizer states that a rank holds on its device through every step: less than it needs.

    A fraction of the time that an estimate of a new kind of configuration takes.
    """
    work = Workload(config, model, cluster)
    if sharding.offloads_parameters(work):
        return 0
    held = states.weight_bytes(work)
    if config.trains_adapters:
        held += states.adapters(work).bytes
    if not sharding.offloads_optimizer(work):
        held += states.optimizer_states(work) + (states.master_weights(work).bytes if work.zero_stage else 0)
    return held


def _rank_estimates(work: Workload, margin: float, *, replays: bool) -> tuple[RankEstimate, ...]:
    """Every rank's estimate; equal cards are estimated once."""
    by_card: dict[tuple[str, int], RankEstimate] = {}
    ranks = []
    for rank, gpu in enumerate(work.cluster.gpus[: work.world]):
        card = (gpu.name, gpu.usable_bytes)
        if card not in by_card:
            by_card[card] = _rank_estimate(work, gpu, margin, replays=replays)
        ranks.append(_of_rank(by_card[card], rank))
    return tuple(ranks)


def _of_rank(estimated: RankEstimate, rank: int) -> RankEstimate:
    """``estimated`` for another rank, in a fraction of the time of `dataclasses.replace`: a search has thousands."""
    copy = object.__new__(RankEstimate)
    copy.__dict__.update(estimated.__dict__, rank=rank)
    return copy


def _rank_estimate(work: Workload, gpu: GpuProfile, margin: float, *, replays: bool) -> RankEstimate:
    terms = device_terms(work, gpu)
    timeline = Timeline(terms)
    peak_phase, allocated = timeline.peak
    beside = _outside(work)[gpu.name]
    usable = round(gpu.usable_bytes * (1 - margin))
    if replays and replayable(work):
        replayed_reserved, replayed_needed = replayed(work, gpu, usable - beside)
        reserved, needed = max(allocated, replayed_reserved), max(allocated, replayed_needed)
    else:
        reserved = reserved_bytes(allocated, short_lived(work, terms), gpu, work)
        needed = needed_bytes(allocated, timeline.held_through_bytes, reserved, gpu, work)
    needed += beside
    return RankEstimate(
        rank=0,
        device=gpu.name,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        process_bytes=reserved + beside,
        needed_bytes=needed,
        capacity_bytes=gpu.usable_bytes,
        fits=needed <= usable,
        peak_phase=peak_phase,
        terms=terms,
    )


@once
def _outside(work: Workload) -> dict[str, int]:
    """Bytes outside the allocator, by card."""
    cards = {gpu.name: gpu for gpu in work.gpus}  # often many of one kind
    return {name: sum(term.bytes for term in process_terms(work, gpu)) for name, gpu in cards.items()}


def process_terms(work: Place, gpu: GpuProfile) -> tuple[Term, ...]:
    """What the process takes on the device outside the caching allocator, in every phase."""
    on_device = "CUDA context and libraries" if gpu.kind != "cpu" else "Python and the training libraries"
    known = Provenance.MEASURED if gpu.context_provenance == "measured" else Provenance.ASSUMED
    terms = [Term("context", gpu.context_bytes, tuple(Phase), on_device, gpu.source, known)]
    figures = {
        "NCCL": nccl_bytes(gpu, work),
        "FSDP2": fsdp_bytes(gpu, work),
        "DeepSpeed": deepspeed_bytes(gpu, work),
        "paging": paging_bytes(gpu, work),
    }
    for name, figure in figures.items():
        if figure.value:
            terms.append(
                Term(name, int(figure.value), tuple(Phase), f"{name} outside the allocator", figure.source, known)
            )
    excess = excess_bytes(work)
    if excess:
        reason = "what recorded runs of this kind took over their prediction"
        terms.append(Term("recorded excess", excess, tuple(Phase), reason, "ftplan run", Provenance.MEASURED))
    return tuple(terms)


def _expert_notes(work: Workload) -> list[str]:
    """What users of mixtures of experts do not expect of 4-bit loading and of peft's all-linear."""
    experts = [group.layer.mlp.experts for group in work.model.groups if group.layer.mlp.experts]
    notes = []
    if experts and work.quantized:
        notes.append("bitsandbytes packs linear modules only: the fused experts stay in 16 bit")
    if work.config.trains_lora and any(expert_targets(group.layer, work.config) for group in work.model.groups):
        notes.append(
            f"{work.config.lora_targets} reaches the fused experts, an adapter for each of them; "
            "target the attention's modules to train far fewer parameters"
        )
    return notes


def _notes(work: Workload, ranks: tuple[RankEstimate, ...]) -> tuple[str, ...]:
    notes = _setup_notes(work)
    if evaluation_exceeds(work, ranks[0]):
        return ("an evaluation with this micro-batch would need more than a step does; it is not counted", *notes)
    return notes


@once
def _setup_notes(work: Workload) -> tuple[str, ...]:
    """What is to be said whatever the batch."""
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
