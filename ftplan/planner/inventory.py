"""The inventory grammar: which devices a run has, in one short text.

::

    inventory = "local" | nodes | group {"+" group}
    nodes     = COUNT "x" COUNT "x" device          equal nodes: how many, and devices of each
    group     = [COUNT "x"] device                  devices of one node
    device    = NAME [":" SIZE]                     a catalogue card, a size such as 24GB, or cpu

``SIZE`` is what a process may use of each device: of a card where something else holds the rest (``RTX4090:20GB``), of
the host's RAM for a CPU process, which gets an equal share without it. Text that does not parse raises
`InventoryError`, which points at the part at fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from ftplan.errors import InventoryError, UnknownNameError
from ftplan.planner.cluster import resolve_inventory
from ftplan.profiles.device_schema import GpuProfile, Node
from ftplan.profiles.gpus import list_gpus, load_gpu
from ftplan.profiles.size_classes import LARGEST_GB, size_class_gb
from ftplan.spec import DeviceGroup, Inventory
from ftplan.units import GIB, MIB, parse_size

__all__ = ["EXAMPLES", "MAX_DEVICES", "format_inventory", "parse_inventory", "resolve_inventory", "smaller_inventories"]

EXAMPLES: Final = "2x24GB, 8xRTX4090, 1xA100-80GB+1xRTX3090, 2x8xH100 (nodes x GPUs), 2xcpu:4GB, local"
MAX_DEVICES: Final = 100_000
SMALLEST_DEVICE_BYTES: Final = 64 * MIB

_COUNT: Final = re.compile(r"\s*(-?[0-9]*)\s*[x×*]\s*", re.IGNORECASE)
_UNITS: Final = (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20), ("B", 1))


def parse_inventory(text: str, *, host_memory_bytes: int | None = None) -> Inventory:
    """Return the inventory that ``text`` states, with canonical device names; ``local`` looks at this machine.

    ``host_memory_bytes`` is the RAM of each node, where known. Raises `InventoryError`.
    """
    if text.strip().lower() == "local":
        return _local_inventory(host_memory_bytes)
    parts = [_part(span) for span in _split(text)]
    _check_nodes(parts)
    _check_kinds(parts)
    nodes = parts[0].counts[0] if len(parts[0].counts) == 2 else 1
    groups = tuple(part.group for part in parts)
    if nodes * sum(group.count for group in groups) > MAX_DEVICES:
        raise _Span(text, 0, len(text)).error(f"more than {MAX_DEVICES:,} devices")
    return Inventory(text=text, groups=groups, nodes=nodes, host_memory_bytes=host_memory_bytes)


def format_inventory(inventory: Inventory) -> str:
    """Return the canonical text of ``inventory``, which parses to the same devices."""
    groups = "+".join(f"{group.count}x{group.device}{_format_size(group.memory_bytes)}" for group in inventory.groups)
    return groups if inventory.nodes == 1 else f"{inventory.nodes}x{groups}"


def smaller_inventories(inventory: Inventory) -> Iterator[Inventory]:
    """Parts of ``inventory`` that could train alone, largest first: fewer nodes, one kind of card, fewer cards.

    Counts are halved, because most global batches split over powers of two.
    """
    for nodes in _halves(inventory.nodes):
        yield part_of(inventory, inventory.groups, nodes)
    groups = inventory.groups
    for group in groups:
        counts = (group.count, *_halves(group.count)) if len(groups) > 1 else tuple(_halves(group.count))
        for count in counts:
            yield part_of(inventory, (group.model_copy(update={"count": count}),))


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        count //= 2
        yield count


def part_of(inventory: Inventory, groups: tuple[DeviceGroup, ...], nodes: int = 1) -> Inventory:
    """``groups`` of ``inventory`` on some of its nodes."""
    part = inventory.model_copy(update={"groups": groups, "nodes": nodes})
    return part.model_copy(update={"text": format_inventory(part)})


@dataclass(frozen=True)
class _Span:
    """A piece of the inventory's text, which errors can point at."""

    text: str
    start: int
    end: int

    @property
    def value(self) -> str:
        return self.text[self.start : self.end]

    def error(self, message: str, hint: str = "") -> InventoryError:
        hint = hint or f"write for example {EXAMPLES}"
        return InventoryError(message, text=self.text, start=self.start, end=self.end, hint=hint)


@dataclass(frozen=True)
class _Part:
    """One group with the text it came from; ``counts`` holds two numbers where it states nodes too."""

    span: _Span
    counts: tuple[int, ...]
    group: DeviceGroup


def _split(text: str) -> Iterator[_Span]:
    """Yield the texts between the plus signs, without the blanks around them."""
    start = 0
    for piece in text.split("+"):
        lead = len(piece) - len(piece.lstrip())
        yield _Span(text, start + lead, start + max(lead, len(piece.rstrip())))
        start += len(piece) + 1


def _part(span: _Span) -> _Part:
    if not span.value:
        raise span.error("the inventory is empty" if not span.text.strip() else "a group of devices is missing here")
    counts, device = _counts(span)
    if len(counts) > 2:
        raise span.error("at most two counts: nodes, and devices of each")
    return _Part(span, counts, _group(device, counts[-1] if counts else 1))


def _counts(span: _Span) -> tuple[tuple[int, ...], _Span]:
    """Return the numbers in front of an ``x`` and the rest of ``span``."""
    counts: list[int] = []
    start = span.start
    while match := _COUNT.match(span.text, start, span.end):
        counts.append(_count(_Span(span.text, match.start(1), match.end(1))))
        start = match.end()
    rest = _Span(span.text, start, span.end)
    if not rest.value:
        raise rest.error("a device is missing after the count")
    return tuple(counts), rest


def _count(span: _Span) -> int:
    if span.value in ("", "-"):
        raise span.error("a count is missing before the x")
    if len(span.value) > 9 or int(span.value) > MAX_DEVICES:
        raise span.error(f"more than {MAX_DEVICES:,} devices")
    if int(span.value) < 1:
        raise span.error("a count is at least 1")
    return int(span.value)


def _group(span: _Span, count: int) -> DeviceGroup:
    name, colon, size = span.value.partition(":")
    name_span = _Span(span.text, span.start, span.start + len(name.rstrip()))
    memory = _size(_Span(span.text, span.start + len(name) + 1, span.end)) if colon else None
    if name.strip().lower() == "cpu":
        return DeviceGroup(device="cpu", count=count, memory_bytes=memory)
    total = _memory_bytes(name_span)
    if memory is not None and memory > total:
        at = _Span(span.text, span.start + len(name) + 1, span.end)
        raise at.error(f"{name.strip()} has {total:,} bytes, fewer than {size.strip()}", "leave the size out")
    return DeviceGroup(device=load_gpu(name).name, count=count, memory_bytes=memory)


def _size(span: _Span) -> int:
    size = parse_size(span.value) if len(span.value) <= 24 else None
    if size is None:
        raise span.error("a size is missing or not one", "write a size such as cpu:4GB or RTX4090:20GiB")
    if size < SMALLEST_DEVICE_BYTES:
        raise span.error("too little memory for a device", "write a size with its unit, such as cpu:4GB")
    return size


def _memory_bytes(span: _Span) -> int:
    """Return the memory of the card named by ``span``; raise where no card is named so."""
    gigabytes = size_class_gb(span.value)
    if gigabytes is not None and not 1 <= gigabytes <= LARGEST_GB:
        raise span.error(f"a card has 1 to {LARGEST_GB} GB")
    try:
        return load_gpu(span.value).memory_bytes
    except UnknownNameError as error:
        raise span.error(error.message, f"{error.hint} (or a size such as 24GB)") from error


def _check_nodes(parts: list[_Part]) -> None:
    """Equal nodes are the only ones there are: nodes x devices stands alone."""
    for part in parts:
        if len(parts) > 1 and len(part.counts) == 2:
            hint = "write equal nodes alone (2x8xH100), or the groups of one node (8xH100+1xA100-80GB)"
            raise part.span.error("nodes x devices cannot be joined with other devices", hint)


def _check_kinds(parts: list[_Part]) -> None:
    """Ranks of one run share one communication library, so one kind of device."""
    for part in parts[1:]:
        if _kind(part.group) != _kind(parts[0].group):
            message = f"{part.group.device} cannot train together with {parts[0].group.device}"
            raise part.span.error(message, "use devices of one maker, or CPU processes only")


def _kind(group: DeviceGroup) -> str:
    return "cpu" if group.device == "cpu" else load_gpu(group.device).kind


def _format_size(size: int | None) -> str:
    if size is None:
        return ""
    unit, factor = next((unit, factor) for unit, factor in _UNITS if size % factor == 0)
    return f":{size // factor}{unit}"


def _local_inventory(host_memory_bytes: int | None) -> Inventory:
    from ftplan.profiles.detect import detect_node  # only `local` looks at the machine

    node = detect_node()
    return Inventory(
        text="local", groups=tuple(_local_groups(node)), host_memory_bytes=host_memory_bytes or node.host.memory_bytes
    )


def _local_groups(node: Node) -> Iterator[DeviceGroup]:
    for (name, usable), gpus in groupby(node.gpus, key=lambda gpu: (_group_name(gpu), gpu.usable_bytes)):
        yield DeviceGroup(device=name, count=len(list(gpus)), memory_bytes=usable)


def _group_name(gpu: GpuProfile) -> str:
    """Return a name that inventories know: the card's, or the size class of one that the catalogue lacks."""
    known = gpu.name in ("cpu", *list_gpus())
    return gpu.name if known else f"{max(1, round(gpu.memory_bytes / GIB))}GB"
