"""The devices that a launch takes of those there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ftplan.launcher.formats.partial import Shape
from ftplan.planner.inventory import part_of
from ftplan.spec import Inventory
from ftplan.verdicts import Problem, Severity


@dataclass(frozen=True)
class Placed:
    """The part of the inventory that takes part, and what is wrong with that."""

    inventory: Inventory
    problems: tuple[Problem, ...] = ()

    @property
    def ranks(self) -> int:
        """Processes in all: one a device."""
        return self.inventory.world_size


def placed(shape: Shape, inventory: Inventory) -> Placed:
    """Where ``shape``'s processes go: on all devices unless it says fewer, on those there are if it says more."""
    nodes = shape.nodes or (1 if shape.per_node else inventory.nodes)
    per_node = shape.per_node or (shape.total // nodes if shape.total else inventory.devices_per_node)
    problems = list(_problems(nodes, max(per_node, 1), inventory))
    used = _part(inventory, min(nodes, inventory.nodes), min(max(per_node, 1), inventory.devices_per_node))
    return Placed(used, tuple(problems))


def _problems(nodes: int, per_node: int, inventory: Inventory) -> Iterator[Problem]:
    there = inventory.devices_per_node
    if per_node > there or nodes > inventory.nodes:
        wanted = f"{nodes} machines of {per_node} GPUs" if max(nodes, inventory.nodes) > 1 else f"{per_node} GPUs"
        yield Problem(
            "devices",
            Severity.ERROR,
            f"the launch starts processes for {wanted}, and there are {inventory.text}",
            hint="change the number of processes, or give --gpus the cards it runs on",
            source="torch.cuda.set_device: invalid device ordinal",
        )
    idle = inventory.world_size - min(nodes, inventory.nodes) * min(per_node, there)
    if idle > 0:
        yield Problem(
            "inefficiency",
            Severity.WARNING,
            f"{idle} of {inventory.world_size} GPUs stay idle: the launch starts {min(per_node, there)} processes"
            + (f" on {min(nodes, inventory.nodes)} of {inventory.nodes} machines" if inventory.nodes > 1 else ""),
            hint="start a process on each",
        )


def _part(inventory: Inventory, nodes: int, per_node: int) -> Inventory:
    """The first devices of each of the first nodes."""
    if nodes == inventory.nodes and per_node == inventory.devices_per_node:
        return inventory
    groups = []
    left = per_node
    for group in inventory.groups:
        count = min(left, group.count)
        if count:
            groups.append(group.model_copy(update={"count": count}))
        left -= count
    return part_of(inventory, tuple(groups), nodes)
