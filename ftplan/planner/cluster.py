"""From an inventory to the cluster it stands for: the profile of each rank's device, and the host of each node."""

from __future__ import annotations

from dataclasses import replace

from ftplan.errors import InputError, InventoryError
from ftplan.profiles.device_schema import Cluster, GpuProfile, HostProfile, Node
from ftplan.profiles.gpus import load_cpu, load_gpu
from ftplan.profiles.hosts import default_host, load_host
from ftplan.spec import DeviceGroup, Inventory, Link


def resolve_inventory(inventory: Inventory) -> Cluster:
    """Return the cluster of ``inventory``: equal nodes, ranks in the order of its groups.

    ``local`` is what this machine offers now. Raises `InventoryError` where CPU processes get no memory.
    """
    if inventory.text.strip().lower() == "local":
        return Cluster(nodes=(_local_node(inventory),), text=inventory.text)
    if inventory.groups[0].device == "cpu":
        node = _cpu_node(inventory)
    else:
        gpus = tuple(gpu for group in inventory.groups for gpu in (_card(group, inventory.link),) * group.count)
        node = Node(gpus=gpus, host=default_host(gpus, memory_bytes=inventory.host_memory_bytes))
    if inventory.network_bytes_per_second is not None:
        node = replace(node, host=replace(node.host, network_bytes_per_second=inventory.network_bytes_per_second))
    return Cluster(nodes=(node,) * inventory.nodes, text=inventory.text)


def _local_node(inventory: Inventory) -> Node:
    from ftplan.profiles.detect import detect_node  # only `local` looks at the machine

    node = detect_node()
    return replace(node, host=_with_memory(node.host, inventory.host_memory_bytes))


def _card(group: DeviceGroup, link: Link) -> GpuProfile:
    gpu = _linked(load_gpu(group.device), link)
    return gpu if group.memory_bytes is None else replace(gpu, usable_bytes=min(group.memory_bytes, gpu.usable_bytes))


def _linked(gpu: GpuProfile, link: Link) -> GpuProfile:
    """``gpu`` with the link that is stated; raises InputError for a card that cannot have it."""
    if link == "pcie":
        return replace(gpu, nvlink_bytes_per_second=0.0)
    if link == "nvlink" and not gpu.nvlink_bytes_per_second:
        if not gpu.nvlink_bridge_bytes_per_second:
            raise InputError(f"{gpu.name} has no NVLink, nor a bridge for it", hint="--link pcie", field="link")
        return replace(gpu, nvlink_bytes_per_second=gpu.nvlink_bridge_bytes_per_second)
    return gpu


def _cpu_node(inventory: Inventory) -> Node:
    """Return a node of CPU processes: those without a stated size share equally what the host has left."""
    stated = sum(group.count * (group.memory_bytes or 0) for group in inventory.groups)
    sharers = sum(group.count for group in inventory.groups if group.memory_bytes is None)
    host = _cpu_host(inventory, stated)
    share = (host.memory_bytes - stated) // sharers if sharers else 0
    if sharers and share <= 0:
        text = inventory.text
        hint = "state a size for each process, such as 2xcpu:4GB, or more host memory"
        raise InventoryError("no host memory is left for a process", text=text, start=0, end=len(text), hint=hint)
    return Node(
        gpus=tuple(cpu for group in inventory.groups for cpu in (load_cpu(group.memory_bytes or share),) * group.count),
        host=host,
    )


def _cpu_host(inventory: Inventory, stated: int) -> HostProfile:
    """Return the desktop host; where only sizes are stated and exceed its RAM, one that has them."""
    host = _with_memory(load_host("desktop"), inventory.host_memory_bytes)
    enough = all(group.memory_bytes for group in inventory.groups) and inventory.host_memory_bytes is None
    return replace(host, memory_bytes=max(host.memory_bytes, stated)) if enough else host


def _with_memory(host: HostProfile, memory_bytes: int | None) -> HostProfile:
    if memory_bytes is None or (memory_bytes == host.memory_bytes and not host.memory_assumed):
        return host
    source = f"RAM as stated; for the rest {host.source}"
    return replace(host, memory_bytes=memory_bytes, source=source, memory_assumed=False)
