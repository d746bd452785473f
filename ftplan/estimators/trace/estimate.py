"""The trace estimator: the same `Estimate` as the analytic one's, from the libraries' own code on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.estimators import analytic
from ftplan.estimators.trace.digest import Digest
from ftplan.estimators.trace.running import traced
from ftplan.estimators.trace.settings import TraceSettings
from ftplan.estimators.workload import Workload
from ftplan.profiles.runtime import runtime_figure
from ftplan.profiles.schema import Cluster, GpuProfile, ModelProfile
from ftplan.profiles.stacks import load_stack
from ftplan.results import Estimate, HostEstimate, Phase, Provenance, RankEstimate, Term, Timeline
from ftplan.spec import RunConfig

HOPPER: Final = (9, 0)


def estimate(
    config: RunConfig,
    model: ModelProfile,
    hf_config: Mapping[str, Any],
    cluster: Cluster,
    *,
    margin: float = 0.0,
    use_cache: bool = True,
) -> Estimate:
    """Trace ``config`` on ``cluster``; ``hf_config`` is the model's config.json.

    Time is the analytic estimate's. Raises InputError for devices without a CUDA allocator, for architectures that
    transformers does not ship, and if a library is missing.
    """
    first = analytic.estimate(config, model, cluster, margin=margin)
    work = Workload(config, model, cluster)
    if work.on_cpu:
        raise InputError(
            "a trace tells what a GPU's allocator does; these devices are CPUs",
            hint="use --estimator analytic",
            field="estimator",
        )
    digests: dict[tuple[int, int], Digest] = {}
    ranks = []
    for rank, gpu in enumerate(work.cluster.gpus[: work.world]):
        kind = gpu.compute_capability or HOPPER
        if kind not in digests:
            digests[kind] = traced(settings_for(config, hf_config, work, gpu), use_cache=use_cache)
        ranks.append(_rank(rank, digests[kind], gpu, work, margin))
    worst = max(ranks, key=lambda rank: rank.needed_bytes - rank.capacity_bytes)
    told = digests[work.cluster.gpus[worst.rank].compute_capability or HOPPER]
    host = _host(first.host, told, work)
    return replace(
        first,
        estimator="trace",
        peak_allocated_bytes=worst.peak_allocated_bytes,
        peak_reserved_bytes=worst.peak_reserved_bytes,
        process_bytes=worst.process_bytes,
        needed_bytes=worst.needed_bytes,
        host_bytes=host.peak_bytes,
        fits=all(rank.fits for rank in ranks) and host.fits,
        peak_phase=worst.peak_phase,
        total_params=told.total_params,
        trainable_params=told.trainable_params,
        provenance=Provenance.TRACED,
        terms=worst.terms,
        ranks=tuple(ranks),
        host=host,
        notes=(*_notes(told), *first.notes),
    )


def settings_for(config: RunConfig, hf_config: Mapping[str, Any], work: Workload, gpu: GpuProfile) -> TraceSettings:
    """What to trace for a rank on ``gpu``: rank 0, whose shards are the largest."""
    capability = gpu.compute_capability or HOPPER
    workspace = runtime_figure("workspace_bytes", "hopper" if capability == HOPPER else "other")
    return TraceSettings(
        config=config.model_copy(update={"model": "traced"}),  # its name does not matter, its config does
        model=hf_config,
        stack=load_stack(config.stack),
        world_size=work.world,
        ranks_per_node=work.ranks_per_node,
        capability=capability,
        workspace_bytes=int(workspace.value),
    )


def _rank(rank: int, told: Digest, gpu: GpuProfile, work: Workload, margin: float) -> RankEstimate:
    beside = sum(term.bytes for term in analytic.process_terms(work, gpu))
    needed = told.needed_bytes + beside
    return RankEstimate(
        rank=rank,
        device=gpu.name,
        peak_allocated_bytes=told.peak_allocated_bytes,
        peak_reserved_bytes=told.peak_reserved_bytes,
        process_bytes=told.peak_reserved_bytes + beside,
        needed_bytes=needed,
        capacity_bytes=gpu.usable_bytes,
        fits=needed <= gpu.usable_bytes * (1 - margin),
        peak_phase=told.peak_phase,
        terms=told.terms(),
    )


def _host(first: HostEstimate, told: Digest, work: Workload) -> HostEstimate:
    """Processes, loading and saving as the analytic estimate has them; offloaded state as it was traced."""
    if work.config.offload == "none":
        return first
    ranks = work.ranks_per_node
    kept = [term for term in first.terms if term.name != "offloaded state"]
    offloaded = [
        replace(term, name=f"offloaded {term.name}", bytes=ranks * term.bytes, reason=f"of {ranks} ranks")
        for term in told.host_terms()
        if Phase.LOAD not in term.alive
    ]
    terms: tuple[Term, ...] = (*kept, *offloaded)
    phase, peak = Timeline(terms).peak
    return replace(first, peak_bytes=peak, fits=peak <= first.capacity_bytes, peak_phase=phase, terms=terms)


def _notes(told: Digest) -> tuple[str, ...]:
    layers = f"{told.traced_layers} of {told.layers} layers" if told.traced_layers < told.layers else "every layer"
    peak = f"traced {layers}; the peak is reached in {told.peak_phase}"
    peak += f" at {told.peak_operation}" if told.peak_operation else ""
    return (peak, told.note) if told.note else (peak,)
