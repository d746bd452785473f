"""Host RAM of a node by phase: processes, loading, offloaded state, saving."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ftplan.estimators.offloading import offload_terms
from ftplan.estimators.params import total_params
from ftplan.estimators.timeline import device_terms
from ftplan.estimators.workload import Workload
from ftplan.profiles.runtime import Figure, runtime_figure
from ftplan.results import HostEstimate, Phase, Provenance, Term, Timeline
from ftplan.units import GB

SHARD_FILE_BYTES: Final = 5 * GB
"""Size of one checkpoint file: what a rank has in memory while it loads file by file (transformers' max_shard_size)."""


def host_estimate(work: Workload) -> HostEstimate:
    """RAM of the node with the most: every rank on it, and on node 0 the rank that loads and saves for all."""
    node = max(work.cluster.nodes, key=lambda node: len(node.gpus))
    terms = tuple(_cpu_terms(work) if node.gpus[0].kind == "cpu" else _gpu_terms(work))
    phase, peak = Timeline(terms).peak
    capacity = node.host.memory_bytes
    return HostEstimate(peak, capacity, node.host.memory_assumed, peak <= capacity, phase, terms)


def _gpu_terms(work: Workload) -> list[Term]:
    ranks = work.ranks_per_node
    figures = _process_figures(work)
    each = sum(figure.value for figure in figures)
    source = "; ".join(figure.source for figure in figures)
    reason = f"{ranks} training processes with their libraries"
    terms = [
        Term("processes", round(ranks * each), tuple(Phase), reason, source, Provenance.MEASURED),
        Term("loading", _loading_bytes(work), (Phase.LOAD,), _loading_reason(work), "transformers from_pretrained"),
    ]
    terms += [
        replace(term, bytes=ranks * term.bytes, reason=f"{term.reason}, of {ranks} ranks")
        for term in offload_terms(work)
    ]
    saving = _saving_bytes(work)
    if saving:
        terms.append(Term("saving", saving, (Phase.SAVE,), "whole weights on rank 0", "deepspeed, torch DCP"))
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
        return whole + (work.ranks_per_node - 1) * min(whole, SHARD_FILE_BYTES)
    return work.ranks_per_node * min(whole, SHARD_FILE_BYTES)


def _loading_reason(work: Workload) -> str:
    if _loads_whole_copies(work):
        return f"{work.ranks_per_node} ranks each load a whole copy before it moves to the device"
    if work.is_fsdp and not work.quantized:
        return "rank 0 loads the whole model, the others receive shards"
    return "one checkpoint file at a time on each rank"


def _saving_bytes(work: Workload) -> int:
    """What rank 0 gathers of a sharded model: 16-bit weights under ZeRO-3; under FSDP2 the weights as they train.

    Those are held twice while they are written: two runs of our own engine on two H200 took about twice their size.
    """
    if work.config.trains_adapters or work.parameter_shards == 1:
        return 0
    if work.is_fsdp:
        return 2 * total_params(work.model) * work.trainable_bytes
    return total_params(work.model) * work.compute_bytes
