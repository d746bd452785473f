"""Look-up of devices by name: catalogue cards, size classes, and CPU processes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from ftplan.errors import UnknownNameError
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.gpu_cards import card_at, card_names, gpu_data
from ftplan.profiles.size_classes import LARGEST_GB, size_class, size_class_gb
from ftplan.units import GB, MIB

_MAKERS: Final = re.compile(r"^(nvidia|amd|geforce|tesla|radeon|instinct)+")
_GEFORCE: Final = re.compile(r"^[rg]tx(?=\d(?!000)\d{3})")


def load_gpu(name: str) -> GpuProfile:
    """Return the card called ``name``: a catalogue name, an alias, the driver's name for it, or a size (``24GB``).

    Case, spaces and hyphens do not matter, nor do NVIDIA, GeForce, Tesla, AMD, Radeon and Instinct in front. Raises
    `UnknownNameError`, with the nearest names, if no card is called so.
    """
    gigabytes = size_class_gb(name)
    if gigabytes is not None and 1 <= gigabytes <= LARGEST_GB:
        return size_class(gigabytes)
    position = _positions().get(gpu_key(name))
    if position is None:
        raise UnknownNameError("GPU", name, list_gpus(), field="gpus")
    return card_at(position)


def load_cpu(memory_bytes: int) -> GpuProfile:
    """Return a CPU process that may use ``memory_bytes`` of its host's RAM, standing in for a card."""
    row = gpu_data()["cpu"]
    return GpuProfile(
        name="cpu",
        kind="cpu",
        memory_bytes=memory_bytes,
        usable_bytes=memory_bytes,
        memory_bytes_per_second=row["memory_gb_per_second"] * GB,
        flops={dtype: tera * 1e12 for dtype, tera in row["tflops"].items()},
        pcie_bytes_per_second=row["memory_gb_per_second"] * GB,
        flash_attention_2=False,
        context_bytes=row["context_mib"] * MIB,
        source=row["source"],
        context_provenance="measured",
    )


def list_gpus() -> tuple[str, ...]:
    """Return the catalogue's names, in the order of the data file."""
    return card_names()


def gpu_key(name: str) -> str:
    """Return what all spellings of a card share: ``rtx4090`` for ``NVIDIA GeForce RTX 4090`` and ``rtx-4090``."""
    return _MAKERS.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))


@cache
def _positions() -> dict[str, int]:
    """Every key that names a card, with the card's place in the file; stated names win over derived ones."""
    cards = gpu_data()["gpus"]
    stated = {gpu_key(name): place for place, card in enumerate(cards) for name in (card["name"], *card["aliases"])}
    derived = {key: place for place, card in enumerate(cards) for key in _derived_keys(card)}
    return derived | stated


def _derived_keys(card: Mapping[str, Any]) -> Iterator[str]:
    """Keys that follow from a card's names: ``4090`` from RTX4090, and either with the size behind it."""
    for name in (card["name"], *card["aliases"]):
        key = gpu_key(name)
        for spelling in (key, _GEFORCE.sub("", key)):
            yield spelling
            yield f"{spelling}{card['nominal_gb']}gb"
