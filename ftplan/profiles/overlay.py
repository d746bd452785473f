"""Calibrated devices: measured figures in the place of packaged ones.

The constants of step time were fitted on data-sheet peaks, of which ``ftplan calibrate`` reaches a part on the cards of
that fit (``calibration_reference`` in ``data/runtime.json``). A measured rate over that part is the peak under which
the constants hold, and that is what a profile gets.

What belongs to the card (context, NCCL, matrix rate, memory bandwidth) goes to every card of its name, wherever it is.
What belongs to the machine around it (links, launch times) counts for ``local`` only, and for CPU processes, which are
always this machine's. These share its cores and its memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ftplan.profiles.calibration import Calibration, DeviceFigures, Kept
from ftplan.profiles.device_schema import Cluster, GpuProfile, HostProfile, Node
from ftplan.profiles.runtime import Figure, runtime_figure
from ftplan.results import Calibrated


@dataclass(frozen=True, slots=True)
class _Measured:
    """A device with what was measured on it; ``sharers`` processes use its cores and memory at a time."""

    gpu: GpuProfile
    figures: DeviceFigures
    sharers: int

    def reference(self, name: str) -> float:
        return _reference(self.gpu, name).value


Changes = dict[str, Any]
"""Fields of `GpuProfile` with their new values."""


def calibrated(cluster: Cluster, kept: Kept) -> Cluster:
    """``cluster`` with what was measured on its devices; of several calibrations of a device the newest counts."""
    found = {gpu.name: newest for gpu in cluster.devices if (newest := kept.newest(gpu.name)) is not None}
    if not found:
        return cluster
    is_local = cluster.text.strip().lower() == "local"
    # Equal nodes are one object, of which a cluster may hold thousands.
    nodes = {id(node): node for node in cluster.nodes}
    changed = {key: _node(node, found, is_local=is_local) for key, node in nodes.items()}
    return replace(cluster, nodes=tuple(changed[id(node)] for node in cluster.nodes))


def _node(node: Node, found: Mapping[str, Calibration], *, is_local: bool) -> Node:
    cards = {id(gpu): gpu for gpu in node.gpus}
    changed = {
        key: _device(gpu, found[gpu.name], len(node.gpus), is_local=is_local or gpu.kind == "cpu")
        for key, gpu in cards.items()
        if gpu.name in found
    }
    gpus = tuple(changed.get(id(gpu), gpu) for gpu in node.gpus)
    return replace(node, gpus=gpus, host=_host(node, found) if is_local else node.host)


def _device(gpu: GpuProfile, calibration: Calibration, processes: int, *, is_local: bool) -> GpuProfile:
    measured = _Measured(gpu, calibration.figures, processes if gpu.kind == "cpu" else 1)
    changes: Changes = {}
    names = []
    for name, change in (_OF_CARD | _OF_MACHINE if is_local else _OF_CARD).items():
        new = change(measured)
        changes |= new
        names += [name] * bool(new)
    if is_local and gpu.kind != "cpu" and calibration.figures.launch_seconds:
        names.append("launch times")
    if "context_bytes" in changes:
        changes["source"] = f"ftplan calibrate, {calibration.measured_at[:10]}"
    return replace(gpu, **changes, calibrated=Calibrated(gpu.name, calibration.measured_at, tuple(names)))


def _host(node: Node, found: Mapping[str, Calibration]) -> HostProfile:
    """The node's host with launch times by what was measured around its devices, the slowest of them."""
    factors = [
        seconds / _reference(gpu, "launch_seconds").value
        for gpu in {gpu.name: gpu for gpu in node.gpus}.values()
        if gpu.name in found and (seconds := found[gpu.name].figures.launch_seconds)
    ]
    return replace(node.host, launch_factor=max(factors, default=node.host.launch_factor))


def _reference(gpu: GpuProfile, name: str) -> Figure:
    return runtime_figure("calibration_reference", "cpu" if gpu.kind == "cpu" else "gpu", name)


def _context(measured: _Measured) -> Changes:
    size = measured.figures.context_bytes
    if size is None:
        return {}
    beyond = round(measured.reference("context_beyond_bytes"))
    return {"context_bytes": size + beyond, "context_provenance": "measured"}


def _nccl(measured: _Measured) -> Changes:
    size = measured.figures.nccl_bytes
    return {} if size is None else {"nccl_bytes": size + round(measured.reference("nccl_beyond_bytes"))}


def _matrix_rate(measured: _Measured) -> Changes:
    """Every dtype's peak, by the one that was measured."""
    rate, dtype = measured.figures.matrix_flops_per_second, measured.figures.matrix_dtype
    if rate is None or dtype is None:
        return {}
    peak = rate / measured.sharers / measured.reference("matrix_fraction")
    ratio = peak / measured.gpu.flops[dtype]
    return {"flops": {name: flops * ratio for name, flops in measured.gpu.flops.items()}}


def _memory_bandwidth(measured: _Measured) -> Changes:
    rate = measured.figures.memory_bytes_per_second
    if rate is None:
        return {}
    return {"memory_bytes_per_second": rate / measured.sharers / measured.reference("memory_fraction")}


def _host_link(measured: _Measured) -> Changes:
    ways = (measured.figures.to_device_bytes_per_second, measured.figures.from_device_bytes_per_second)
    slower = min((rate for rate in ways if rate is not None), default=None)
    return {} if slower is None else {"pcie_bytes_per_second": slower / measured.reference("host_link_fraction")}


def _device_link(measured: _Measured) -> Changes:
    rate = measured.figures.link_bytes_per_second
    return {} if rate is None else {"peer_bytes_per_second": rate / measured.reference("link_fraction")}


_OF_CARD: Final[dict[str, Callable[[_Measured], Changes]]] = {
    "context": _context,
    "NCCL": _nccl,
    "matrix rate": _matrix_rate,
    "memory bandwidth": _memory_bandwidth,
}
_OF_MACHINE: Final[dict[str, Callable[[_Measured], Changes]]] = {
    "host link": _host_link,
    "device link": _device_link,
}
