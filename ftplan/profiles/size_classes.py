"""Size classes: ``24GB`` stands for any current card sold as 24 GB, so it is in every figure as bad as the worst one.

``size_classes`` in ``data/gpus.json`` states the rule and which cards make up a class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Final

from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.gpu_cards import card_at, card_names, gpu_data
from ftplan.units import GIB

LARGEST_GB: Final = 1024
"""Larger sizes are taken for a slip."""

_CLASS: Final = re.compile(r"(\d{1,6})\s*g(?:i?b)?", re.IGNORECASE)


def size_class_gb(name: str) -> int | None:
    """Return 24 for ``24GB``, ``24 GiB`` or ``24g``: cards are sold in GB and meant in GiB. None if it is no size."""
    match = _CLASS.fullmatch(name.strip())
    return int(match[1]) if match else None


def list_size_classes() -> tuple[str, ...]:
    """Return the sizes that have members, smallest first: ``4GB`` to ``180GB``."""
    return tuple(f"{gigabytes}GB" for gigabytes in sorted(_members()))


@cache
def size_class(gigabytes: int) -> GpuProfile:
    """Return the conservative card of ``gigabytes``, which lies between 1 and `LARGEST_GB`."""
    assert 1 <= gigabytes <= LARGEST_GB
    members = _members()
    if gigabytes in members:
        return replace(_worst(f"{gigabytes}GB", members[gigabytes]), host=_host(gigabytes))
    return _between(gigabytes, members)


@cache
def _members() -> dict[int, tuple[GpuProfile, ...]]:
    places = {name: position for position, name in enumerate(card_names())}
    classes = gpu_data()["size_classes"]["members"]
    return {int(size): tuple(card_at(places[name]) for name in names) for size, names in classes.items()}


def _between(gigabytes: int, members: dict[int, tuple[GpuProfile, ...]]) -> GpuProfile:
    """Give a size without members a fraction of its nominal memory, and the figures of the next smaller class."""
    smaller = max((size for size in members if size < gigabytes), default=min(members))
    usable = int(gigabytes * GIB * gpu_data()["size_classes"]["usable_fraction"])
    if smaller < gigabytes:
        usable = max(usable, size_class(smaller).usable_bytes)
    card = _worst(f"{gigabytes}GB", members[smaller])
    return replace(card, memory_bytes=gigabytes * GIB, usable_bytes=usable, host=_host(gigabytes))


def _worst(name: str, cards: Sequence[GpuProfile]) -> GpuProfile:
    """Take each figure from the worst of ``cards``; no link between them is assumed."""
    return GpuProfile(
        name=name,
        kind="cuda",
        memory_bytes=min(card.memory_bytes for card in cards),
        usable_bytes=min(card.usable_bytes for card in cards),
        memory_bytes_per_second=min(card.memory_bytes_per_second for card in cards),
        flops={dtype: min(card.flops[dtype] for card in cards) for dtype in cards[0].flops},
        pcie_bytes_per_second=min(card.pcie_bytes_per_second for card in cards),
        compute_capability=min(card.compute_capability for card in cards if card.compute_capability),
        bf16=all(card.bf16 for card in cards),
        flash_attention_2=all(card.flash_attention_2 for card in cards),
        context_bytes=max(card.context_bytes for card in cards),
        source=f"size class: in every figure the worst of {', '.join(card.name for card in cards)}",
    )


def _host(gigabytes: int) -> str:
    """Return the host that cards of this size usually sit in."""
    hosts: dict[str, str] = gpu_data()["size_classes"]["hosts"]
    return hosts[str(max(int(least) for least in hosts if int(least) <= gigabytes))]
