"""The trace estimator: the same `Estimate` as the analytic one's, from the libraries' own code on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.estimators import analytic
from ftplan.estimators.combined import combined, worst_of
from ftplan.estimators.states import optimizer_cost
from ftplan.estimators.targets import QUERY_VALUE, target_modules
from ftplan.estimators.trace.digest import Digest
from ftplan.estimators.trace.running import traced
from ftplan.estimators.trace.settings import TraceSettings, worst_rank
from ftplan.estimators.trace.time import traced_step_time
from ftplan.estimators.workload import Place
from ftplan.profiles.device_schema import Cluster, GpuProfile
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.runtime import runtime_figure
from ftplan.profiles.stacks import load_stack
from ftplan.results import Estimate, HostEstimate, Phase, Provenance, RankEstimate, StepTime, Term, Timeline
from ftplan.spec import RunConfig
from ftplan.units import DTYPE_BYTES

HOPPER: Final = (9, 0)


def estimate(
    config: RunConfig,
    model: ModelProfile | None,
    hf_config: Mapping[str, Any],
    cluster: Cluster,
    *,
    margin: float = 0.0,
    use_cache: bool = True,
) -> Estimate:
    """Trace ``config`` on ``cluster``; ``hf_config`` is the model's config.json, ``model`` its profile if it has one.

    Time and the host's RAM are the analytic estimate's, offloaded state excepted; without a profile they follow from
    what was traced. Raises InputError for devices without a CUDA allocator, for architectures that transformers does
    not ship, and if a library is missing.
    """
    place = Place(config, cluster)
    if place.on_cpu:
        raise InputError(
            "a trace tells what a GPU's allocator does; these devices are CPUs",
            hint="use --estimator analytic",
            field="estimator",
        )
    # First, because it refuses names that mean nothing in a moment.
    optimizer_cost(config.optimizer)
    closed = None if model is None else analytic.estimate(config, model, cluster)
    wanted = config if model is None else _named_targets(config, model)
    digests: dict[tuple[int, int], Digest] = {}
    ranks = []
    for rank, gpu in enumerate(place.gpus):
        kind = gpu.compute_capability or HOPPER
        if kind not in digests:
            digests[kind] = traced(settings_for(wanted, hf_config, place, gpu), use_cache=use_cache)
        ranks.append(_rank(rank, digests[kind], gpu, place, margin))
    told = digests[place.gpus[worst_of(ranks).rank].compute_capability or HOPPER]
    step, host, notes = _beside(closed, place, told)
    params = (told.total_params, told.trainable_params)
    return combined("trace", place, tuple(ranks), host, step, params, (*_notes(told), *notes))


def _named_targets(config: RunConfig, model: ModelProfile) -> RunConfig:
    """``config`` with the modules that ``qv`` means in this architecture, whatever they are called there."""
    if not config.trains_lora or QUERY_VALUE not in config.target_names:
        return config
    return config.model_copy(update={"lora_targets": ",".join(target_modules(model, config))})


def _beside(closed: Estimate | None, place: Place, told: Digest) -> tuple[StepTime, HostEstimate, tuple[str, ...]]:
    """Time, host and notes: by the closed forms where the model has a profile, else from the trace's work."""
    if closed is None:
        note = "this architecture has no profile: time and host RAM are rough, from the work that was traced"
        return traced_step_time(told, place), _rough_host(told, place), (note,)
    return closed.step, _host(closed.host, told, place), closed.notes


def settings_for(config: RunConfig, hf_config: Mapping[str, Any], place: Place, gpu: GpuProfile) -> TraceSettings:
    """What to trace for a rank on ``gpu``: the one that needs most."""
    capability = gpu.compute_capability or HOPPER
    workspace = runtime_figure("workspace_bytes", "hopper" if capability == HOPPER else "other")
    return TraceSettings(
        config=config.model_copy(update={"model": "traced"}),  # its name does not matter, its config does
        model=hf_config,
        stack=load_stack(config.stack),
        world_size=place.world,
        rank=worst_rank(config, place.world),
        ranks_per_node=place.ranks_per_node,
        capability=capability,
        workspace_bytes=int(workspace.value),
        evaluates=config.evaluates,
    )


def _rank(rank: int, told: Digest, gpu: GpuProfile, place: Place, margin: float) -> RankEstimate:
    beside = sum(term.bytes for term in analytic.process_terms(place, gpu))
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


def _host(first: HostEstimate, told: Digest, place: Place) -> HostEstimate:
    """Processes, loading and saving as the analytic estimate has them; offloaded state as it was traced."""
    if place.config.offload == "none":
        return first
    ranks = place.ranks_per_node
    kept = [term for term in first.terms if term.name != "offloaded state"]
    offloaded = [
        replace(term, name=f"offloaded {term.name}", reason=f"of {ranks} ranks") for term in _after_loading(told, ranks)
    ]
    terms: tuple[Term, ...] = (*kept, *offloaded)
    phase, peak = Timeline(terms).peak
    return replace(first, peak_bytes=peak, fits=peak <= first.capacity_bytes, peak_phase=phase, terms=terms)


def _after_loading(told: Digest, ranks: int) -> list[Term]:
    """What ``ranks`` ranks hold on the host once they are loaded; loading itself is told apart."""
    terms = []
    for term in told.host_terms():
        alive = tuple(phase for phase in term.alive if phase is not Phase.LOAD)
        if alive:
            terms.append(replace(term, bytes=ranks * term.bytes, alive=alive))
    return terms


def _rough_host(told: Digest, place: Place) -> HostEstimate:
    """Processes, a whole copy of the weights for each rank while it loads, and what was traced on the host after."""
    node = max(place.cluster.nodes, key=lambda node: len(node.gpus))
    ranks = place.ranks_per_node
    process = runtime_figure("process_host_bytes")
    loading = ranks * told.total_params * DTYPE_BYTES[place.config.weights_dtype]
    terms = [
        Term("processes", round(ranks * process.value), tuple(Phase), f"{ranks} processes", process.source),
        Term("loading", loading, (Phase.LOAD,), f"{ranks} ranks each load a whole copy", "assumed", Provenance.ASSUMED),
    ]
    terms += _after_loading(told, ranks)
    phase, peak = Timeline(tuple(terms)).peak
    capacity = node.host.memory_bytes
    return HostEstimate(peak, capacity, node.host.memory_assumed, peak <= capacity, phase, tuple(terms))


def _notes(told: Digest) -> tuple[str, ...]:
    layers = f"{told.traced_layers} of {told.layers} layers" if told.traced_layers < told.layers else "every layer"
    peak = f"traced {layers}; the peak is reached in {told.peak_phase}"
    peak += f" at {told.peak_operation}" if told.peak_operation else ""
    return (peak, told.note) if told.note else (peak,)
