"""The cards of ``data/gpus.json`` as profiles; that file defines every figure in it.

JSON, because a plan starts in milliseconds: a hundred cards parse in one of them, where YAML takes a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.packaged import packaged_json
from ftplan.units import GB, MIB


def gpu_data() -> Mapping[str, Any]:
    """Return the data file as it is."""
    return packaged_json("gpus.json")


@cache
def card_names() -> tuple[str, ...]:
    """Return the catalogue's names in the order of the file."""
    return tuple(card["name"] for card in gpu_data()["gpus"])


@cache
def card_at(position: int) -> GpuProfile:
    """Return the profile of the card at ``position`` in the file."""
    data = gpu_data()
    card, rules = data["gpus"][position], data["rules"]
    capability = _capability(card)
    modern = capability is not None and capability >= (8, 0)
    return GpuProfile(
        name=card["name"],
        kind=card["kind"],
        memory_bytes=card["driver_mib"] * MIB,
        usable_bytes=_usable_bytes(card, rules["usable"]),
        memory_bytes_per_second=card["memory_gb_per_second"] * GB,
        flops={dtype: tera * 1e12 for dtype, tera in card["tflops"].items()},
        pcie_bytes_per_second=data["host_links_gb_per_second"][card["host_link"]] * GB,
        nvlink_bytes_per_second=card["nvlink_gb_per_second"] * GB,
        compute_capability=capability,
        bf16=card.get("bf16", modern),
        flash_attention_2=card.get("flash_attention_2", modern),
        dollars_per_hour=card["dollars_per_hour"],
        context_bytes=_context_bytes(card, rules["context"]),
        source=card["source"],
        aliases=tuple(card["aliases"]),
        memory_provenance=card["memory_provenance"],
        context_provenance="measured" if "context_mib" in card else "assumed",
        nvlink_bridge_bytes_per_second=card["nvlink_bridge_gb_per_second"] * GB,
        host=card["host"],
    )


def _capability(card: Mapping[str, Any]) -> tuple[int, int] | None:
    stated = card["compute_capability"]
    return (stated[0], stated[1]) if stated else None


def _usable_bytes(card: Mapping[str, Any], rule: Mapping[str, Any]) -> int:
    """Return the CUDA runtime's total, or else the driver's less the reserve that ``rules.usable`` states."""
    total: int = card["driver_mib"]
    usable = card["runtime_mib"] or int(total - rule["reserve_mib"] - rule["reserve_fraction"] * total)
    return int(usable) * MIB


def _context_bytes(card: Mapping[str, Any], rule: Mapping[str, Any]) -> int:
    """Return the measured context, or else what ``rules.context`` gives for the card's multiprocessors."""
    if "context_mib" in card:
        return int(card["context_mib"]) * MIB
    return int(rule["base_mib"] + rule["mib_per_multiprocessor"] * card["multiprocessors"]) * MIB
