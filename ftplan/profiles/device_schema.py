"""What profiles hold of devices: GPUs, hosts, and the nodes and cluster made of them, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ftplan.results import Calibrated, History


@dataclass(frozen=True)
class GpuProfile:
    """One accelerator, or a CPU process standing in for one (``kind`` cpu).

    ``memory_bytes`` is what the driver reports as total; ``usable_bytes`` what a process can have of it on an otherwise
    idle card. ``flops`` maps dtype (``bf16``, ``fp16``, ``tf32``, ``fp32``) to dense FLOP/s, never with sparsity.
    ``compute_capability`` is NVIDIA's (9, 0), or None. ``nvlink_bytes_per_second`` and ``pcie_bytes_per_second`` are
    one direction; ``nvlink_bridge_bytes_per_second`` is that of an optional bridge, which is not assumed to be there.
    ``flops`` holds every dtype: where a card has no unit for one, the rate at which it is emulated.
    ``context_bytes`` is what a process holds before its first tensor. ``host`` names the host they usually sit in.
    ``source`` says where the figures come from, ``*_provenance`` how far to trust them.
    ``nccl_bytes`` and ``peer_bytes_per_second`` (to another device of the node) are None unless measured, and so is
    ``calibrated``, which says what else was.
    """

    name: str
    kind: Literal["cuda", "rocm", "cpu"]
    memory_bytes: int
    usable_bytes: int
    memory_bytes_per_second: float
    flops: Mapping[str, float]
    pcie_bytes_per_second: float
    nvlink_bytes_per_second: float = 0.0
    compute_capability: tuple[int, int] | None = None
    bf16: bool = True
    flash_attention_2: bool = True
    dollars_per_hour: float | None = None
    context_bytes: int = 0
    source: str = ""
    aliases: tuple[str, ...] = ()
    memory_provenance: Literal["measured", "assumed"] = "assumed"
    context_provenance: Literal["measured", "assumed"] = "assumed"
    nvlink_bridge_bytes_per_second: float = 0.0
    host: str = "desktop"
    nccl_bytes: int | None = None
    peer_bytes_per_second: float | None = None
    calibrated: Calibrated | None = None

    @property
    def link_bytes_per_second(self) -> float:
        """To another device of the node, one direction: as measured, or by NVLink, or through the host."""
        return self.peer_bytes_per_second or self.nvlink_bytes_per_second or self.pcie_bytes_per_second


@dataclass(frozen=True)
class HostProfile:
    """One node's host: RAM, physical cores, and bytes per second between RAM and cores.

    ``memory_assumed``: nobody stated or measured its RAM. ``launch_factor`` is the time it takes to launch work on a
    device over that of the host that launch times were fitted on.
    """

    name: str
    memory_bytes: int
    cores: int
    memory_bytes_per_second: float
    network_bytes_per_second: float
    source: str = ""
    memory_assumed: bool = True
    launch_factor: float = 1.0


@dataclass(frozen=True)
class Node:
    """The devices of one machine, in rank order, and its host."""

    gpus: tuple[GpuProfile, ...]
    host: HostProfile


@dataclass(frozen=True)
class Cluster:
    """The resolved inventory: rank r is the r-th device over all nodes."""

    nodes: tuple[Node, ...]
    text: str = ""
    history: History = field(default_factory=History)

    @cached_property
    def gpus(self) -> tuple[GpuProfile, ...]:
        """Every device in rank order."""
        return tuple(gpu for node in self.nodes for gpu in node.gpus)

    @cached_property
    def devices(self) -> tuple[GpuProfile, ...]:
        """One device of each name, by name."""
        by_name = {gpu.name: gpu for gpu in self.gpus}
        return tuple(by_name[name] for name in sorted(by_name))

    @cached_property
    def device_names(self) -> tuple[str, ...]:
        """Each name of a device once, sorted."""
        return tuple(gpu.name for gpu in self.devices)

    @cached_property
    def calibrations(self) -> tuple[Calibrated, ...]:
        """What was calibrated: one for each name whose device was."""
        return tuple(gpu.calibrated for gpu in self.devices if gpu.calibrated)

    @property
    def world_size(self) -> int:
        """Number of devices: one rank each."""
        return len(self.gpus)
