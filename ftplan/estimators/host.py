"""Host RAM of a node by phase: processes, loading, offloaded state, saving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ftplan.estimators import states
from ftplan.estimators.offloading import offload_terms
from ftplan.estimators.params import total_params
from ftplan.estimators.timeline import device_terms
from ftplan.estimators.workload import Workload, once
from ftplan.profiles.runtime import Figure, runtime_figure
from ftplan.results import HostEstimate, Phase, Provenance, Term, Timeline
from ftplan.units import GB

SHARD_FILE_BYTES: Final = 5 * GB
"""Size of one checkpoint file: what a rank has in memory while it loads file by file (transformers' max_shard_size)."""


def host_estimate(work: Workload) -> HostEstimate:
    """RAM of the node with the most: every rank on it, and on node 0 the rank that loads and saves for all."""
    return _host_estimate(work, _cpu_terms(work)) if work.on_cpu else _beside_devices(work)


@once
def _beside_devices(work: Workload) -> HostEstimate:
    """What no batch decides: the host of GPUs holds none of the activations."""
    return _host_estimate(work, _gpu_terms(work))


def _host_estimate(work: Workload, terms: Sequence[Term]) -> HostEstimate:
    node = max(work.cluster.nodes, key=lambda node: len(node.gpus))
    timeline = Timeline(tuple(terms))
    phase, peak = timeline.peak
    capacity = node.host.memory_bytes
    shared = _shared_bytes(work)
    loading = timeline.bytes_at(Phase.LOAD) - shared
    needed = max(loading, *(size for each, size in timeline.by_phase.items() if each is not Phase.LOAD))
    return HostEstimate(peak, capacity, node.host.memory_assumed, needed <= capacity, phase, timeline.terms, shared)


def _gpu_terms(work: Workload) -> list[Term]:
    ranks = work.ranks_per_node
    loading = runtime_figure("process_host_loading_bytes")
    figures = _process_figures(work)
    more = sum(figure.value for figure in figures) - loading.value
    source = "; ".join(figure.source for figure in figures)
    terms = [
        Term(
            "processes",
            round(ranks * loading.value),
            tuple(Phase),
            f"{ranks} training processes with their libraries",
            loading.source,
            Provenance.MEASURED,
        ),
        Term(
            "training",
            round(ranks * more),
            # ZeRO-3 makes the model inside DeepSpeed and its process group, which are there by then.
            tuple(Phase) if work.zero_stage == 3 else states.AFTER_LOAD,
            "what the processes take once they train",
            source,
            Provenance.MEASURED,
        ),
        Term("loading", _loading_bytes(work), (Phase.LOAD,), _loading_reason(work), "transformers from_pretrained"),
    ]
    terms += [
        replace(term, bytes=ranks * term.bytes, reason=f"{term.reason}, of {ranks} ranks")
        for term in offload_terms(work)
    ]
    saving = _saving(work)
    if saving.value:
        reason = "weights and optimizer states on their way to a checkpoint"
        terms.append(Term("saving", round(saving.value), (Phase.SAVE,), reason, saving.source, Provenance.MEASURED))
    return terms


def _process_figures(work: Workload) -> list[Figure]:
    """What one process holds beside weights: itself, its process group, DeepSpeed."""
    figures = [runtime_figure("process_host_bytes")]
    if work.world > 1:
        figures.append(runtime_figure("process_group_host_bytes"))
    if work.zero_stage:
        figures.append(runtime_figure("deepspeed_host_bytes"))
    return figures


def _cpu_terms(work: Workload) -> list[Term]:
    """On a CPU the device is the host: every rank's tensors and its process."""
    gpu = work.cluster.gpus[0]
    ranks = work.ranks_per_node
    terms = [
        Term(
            "processes",
            ranks * gpu.context_bytes,
            tuple(Phase),
            f"{ranks} training processes with their libraries",
            gpu.source,
            Provenance.ASSUMED,
        )
    ]
    for term in device_terms(work, gpu):
        terms.append(Term(term.name, ranks * term.bytes, term.alive, term.reason, term.source, term.provenance))
    return terms


def _loads_whole_copies(work: Workload) -> bool:
    """Whether every rank loads the whole model on the host before it moves to the device."""
    return work.parameter_shards == 1 and not work.quantized


def _loading_bytes(work: Workload) -> int:
    whole = total_params(work.model) * work.frozen_bytes
    if _loads_whole_copies(work):
        return work.ranks_per_node * whole
    if work.is_fsdp and not work.quantized:
        # What trains becomes fp32 under mixed precision on rank 0's host, before it is handed on (accelerate).
        handed_on = total_params(work.model) * work.trainable_bytes if work.trains_all else whole
        return max(whole, handed_on) + (work.ranks_per_node - 1) * min(whole, SHARD_FILE_BYTES)
    if work.zero_stage == 3:
        return min(whole, SHARD_FILE_BYTES)
    return work.ranks_per_node * min(whole, SHARD_FILE_BYTES)


def _shared_bytes(work: Workload) -> int:
    """Pages of the checkpoint that ranks map beside the first's: weights that keep their 16 bits are never copied.

    What one process shows as resident after loading Llama-3.2-1B in bf16 is its libraries and the file once, whether
    the weights stay on the host, move to the card whole, or are packed there (benchmarks/data/engine.jsonl, r-l1-lora
    and r-l1-qlora: 4.0 and 3.7 GB), so that they are the file's own pages.
    """
    if work.on_cpu or not _loads_whole_copies(work) or work.config.weights_dtype == "fp32":
        return 0
    return (work.ranks_per_node - 1) * total_params(work.model) * work.frozen_bytes


def _loading_reason(work: Workload) -> str:
    if _loads_whole_copies(work):
        return f"{work.ranks_per_node} ranks each map or load a whole copy before it moves to the device"
    if work.is_fsdp and not work.quantized:
        return "rank 0 loads the whole model, the others receive shards"
    if work.zero_stage == 3:
        return "one checkpoint file at a time, whose pages the ranks share; the system may take back those of others"
    return "one checkpoint file at a time on each rank"


def _saving(work: Workload) -> Figure:
    """What a checkpoint of full fine-tuning takes of the host while it is written; one of adapters is small."""
    if work.config.trains_adapters:
        return Figure(0, "adapters alone are saved")
    kind = "fsdp" if work.is_fsdp else "zero3" if work.zero_stage == 3 else "zero" if work.zero_stage else "whole"
    copies = runtime_figure("saving_copies", kind)
    element = work.compute_bytes if work.zero_stage else work.trainable_bytes
    return Figure(copies.value * total_params(work.model) * element, copies.source)
