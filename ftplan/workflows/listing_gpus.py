"""The catalogue of GPUs, searched, with what this user calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from ftplan.errors import InputError, UnknownNameError
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.gpus import list_gpus, load_gpu
from ftplan.results import Calibrated, to_jsonable
from ftplan.spec import DeviceGroup, Inventory
from ftplan.units import MIB, parse_size
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.searching import Listing, hint_for, holds, words_of

Link = Literal["NVLink", "Infinity Fabric", "PCIe"]
_MAKERS: Final = {"cuda": "nvidia", "rocm": "amd"}


@dataclass(frozen=True)
class GpuRow:
    """One card, or a size class, as a plan for it would take it.

    Rates are peaks, FLOP/s dense; that of bf16 is its emulation's where a card has none. ``link`` leads to another card
    of the node, one direction, and ``pcie_bytes_per_second`` to the host. ``nvlink_bridge_bytes_per_second`` is that of
    an optional bridge, which plans do not count on.

    ``provenance``: calibrated where this user measured some figures, which ``calibrated`` names; measured where a
    driver printed its memory; else assumed. What was not calibrated of the rates is the data sheet's.
    """

    name: str
    aliases: tuple[str, ...]
    kind: Literal["cuda", "rocm", "cpu"]
    memory_bytes: int
    usable_bytes: int
    bf16_flops_per_second: int
    fp16_flops_per_second: int
    memory_bytes_per_second: int
    link: Link
    link_bytes_per_second: int
    pcie_bytes_per_second: int
    nvlink_bridge_bytes_per_second: int
    compute_capability: str | None
    bf16: bool
    flash_attention_2: bool
    dollars_per_hour: float | None
    provenance: Literal["assumed", "measured", "calibrated"]
    calibrated: Calibrated | None
    source: str


def find_gpus(search: Sequence[str] = (), *, min_memory: str | None = None) -> Listing[GpuRow]:
    """The cards whose names hold all words of ``search``, in the catalogue's order.

    A size class is found by its name alone (24GB), and every card by any spelling that an inventory takes.
    ``min_memory`` is text such as 24GB. Raises InputError if it is not.
    """
    least, words = _memory_bytes(min_memory), words_of(search)
    every = _every_card()
    named = [gpu for gpu in every if _is_named(gpu, words)]
    named = [*_called(" ".join(words), every, named), *named]
    rows = tuple(_row(gpu) for gpu in named if gpu.memory_bytes >= least)
    hint = "" if rows else hint_for("GPU", words, list_gpus(), found=len(named), limits="--min-memory")
    return Listing(rows, hint)


def gpus_document(listing: Listing[GpuRow]) -> dict[str, Any]:
    """The JSON document of ``ftplan gpus``."""
    return {"gpus": [to_jsonable(row) for row in listing.rows]}


def _memory_bytes(text: str | None) -> int:
    if text is None:
        return 0
    size = parse_size(text)
    if size is None or size < MIB:
        raise InputError(f"{text!r} is no memory of a card", hint="for example 24GB", field="min_memory")
    return size


def _every_card() -> tuple[GpuProfile, ...]:
    """All cards with this user's calibrations, as if one node had them."""
    groups = tuple(DeviceGroup(device=name, count=1) for name in list_gpus())
    return known_cluster(Inventory(text="every card", groups=groups)).gpus


def _is_named(gpu: GpuProfile, words: Sequence[str]) -> bool:
    """Whether names of ``gpu`` hold all ``words``; its maker's name may be one."""
    return holds((gpu.name, *gpu.aliases), [word for word in words if word.lower() != _MAKERS[gpu.kind]])


def _called(name: str, every: Sequence[GpuProfile], named: Sequence[GpuProfile]) -> Iterator[GpuProfile]:
    """The device that an inventory calls ``name``, unless it is among ``named``."""
    with suppress(UnknownNameError):
        gpu = load_gpu(name)
        if gpu.name not in [each.name for each in named]:
            yield next((each for each in every if each.name == gpu.name), gpu)


def _row(gpu: GpuProfile) -> GpuRow:
    calibrated = gpu.calibrated if gpu.calibrated and gpu.calibrated.figures else None
    capability = gpu.compute_capability
    return GpuRow(
        name=gpu.name,
        aliases=gpu.aliases,
        kind=gpu.kind,
        memory_bytes=gpu.memory_bytes,
        usable_bytes=gpu.usable_bytes,
        bf16_flops_per_second=round(gpu.flops["bf16"]),
        fp16_flops_per_second=round(gpu.flops["fp16"]),
        memory_bytes_per_second=round(gpu.memory_bytes_per_second),
        link=_link(gpu),
        link_bytes_per_second=round(gpu.link_bytes_per_second),
        pcie_bytes_per_second=round(gpu.pcie_bytes_per_second),
        nvlink_bridge_bytes_per_second=round(gpu.nvlink_bridge_bytes_per_second),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        bf16=gpu.bf16,
        flash_attention_2=gpu.flash_attention_2,
        dollars_per_hour=gpu.dollars_per_hour,
        provenance="calibrated" if calibrated else gpu.memory_provenance,
        calibrated=calibrated,
        source=gpu.source,
    )


def _link(gpu: GpuProfile) -> Link:
    if not gpu.nvlink_bytes_per_second:
        return "PCIe"
    return "Infinity Fabric" if gpu.kind == "rocm" else "NVLink"
