"""The devices that a launch takes of those there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ftplan.launcher.formats.partial import Shape
from ftplan.planner.inventory import part_of
from ftplan.spec import Inventory
from ftplan.verdicts import Problem, Severity

NAMED: Final = ("GPU-", "MIG-")
"""How the names of devices begin that CUDA_VISIBLE_DEVICES may hold in the place of indices."""
MOST_DIGITS: Final = 5


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
    seen = _seen(shape, inventory)
    per_node = max(shape.per_node or (shape.total // nodes if shape.total else len(seen)), 1)
    problems = [*_problems(nodes, per_node, inventory), *_unseen(shape, per_node, seen, inventory)]
    used = _part(inventory, min(nodes, inventory.nodes), seen[:per_node] or (0,))
    return Placed(used, tuple(problems))


def _is_cpu(inventory: Inventory) -> bool:
    return all(group.device == "cpu" for group in inventory.groups)


def _seen(shape: Shape, inventory: Inventory) -> tuple[int, ...]:
    """The devices of a node that processes see, in their order; CUDA stops at the first that is none.

    A name, such as GPU-8932f937, stands for the device at its own position.
    """
    there = range(inventory.devices_per_node)
    if _is_cpu(inventory):
        return tuple(there)
    if shape.visible is None:
        return tuple(index for index in there if str(index) not in shape.hidden)
    found: list[int] = []
    for position, name in enumerate(shape.visible):
        index = _index(name, position)
        if index not in there or index in found:
            break
        found.append(index)
    return tuple(found)


def _index(name: str, position: int) -> int:
    if name.startswith(NAMED):
        return position
    return int(name) if name.isdecimal() and len(name) <= MOST_DIGITS else -1


def _unseen(shape: Shape, per_node: int, seen: tuple[int, ...], inventory: Inventory) -> Iterator[Problem]:
    """Devices that are named and not there, and processes beyond those that are seen."""
    there = inventory.devices_per_node
    if _is_cpu(inventory) or (shape.visible is None and not shape.hidden):
        return
    named = ",".join(shape.visible or ())[:40]
    if not seen:
        what = (
            f"of the devices {named!r} that it names none is there"
            if named not in ("", "-1")
            else "every GPU is hidden"
        )
        yield _invalid(f"the launch sees no GPU: {what}")
    elif shape.visible is not None and len(seen) < len(shape.visible):
        yield _invalid(f"the launch sees the devices {named}, and not all of them are among the {there} of a machine")
    elif len(seen) < per_node <= there:
        yield _invalid(f"the launch starts {per_node} processes on a machine and lets them see {len(seen)} GPUs")
    if len(inventory.groups) > 1 and any(name.startswith(NAMED) for name in shape.visible or ()):
        yield Problem(
            "unresolved",
            Severity.WARNING,
            f"which cards {named} are cannot be told",
            hint="name them by index in CUDA_VISIBLE_DEVICES, or give --gpus only the cards it runs on",
            key="CUDA_VISIBLE_DEVICES",
            may_need_more=True,
            may_need_less=True,
        )


def _invalid(message: str) -> Problem:
    return Problem(
        "devices",
        Severity.ERROR,
        message,
        hint="change CUDA_VISIBLE_DEVICES, gpu_ids, --include or --exclude, or the number of processes",
        source="torch.cuda.set_device: invalid device ordinal",
    )


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


def _part(inventory: Inventory, nodes: int, indices: tuple[int, ...]) -> Inventory:
    """Some devices of each of the first nodes."""
    if nodes == inventory.nodes and len(indices) == inventory.devices_per_node:
        return inventory
    groups = []
    start = 0
    for group in inventory.groups:
        count = sum(start <= index < start + group.count for index in indices)
        if count:
            groups.append(group.model_copy(update={"count": count}))
        start += group.count
    return part_of(inventory, tuple(groups), nodes)
