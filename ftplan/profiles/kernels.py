"""Kernels that libraries put in the place of a model's own: ``data/kernels.json``, read from the libraries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ftplan.profiles.packaged import packaged_json


@dataclass(frozen=True)
class KernelsProfile:
    """A library of kernels: the package, the ``model_type`` values it knows, and the oldest card it runs on."""

    package: str
    version: str
    model_types: frozenset[str]
    compute_capability: tuple[int, int]
    source: str


@cache
def liger() -> KernelsProfile:
    """Liger's Triton kernels."""
    row = packaged_json("kernels.json")["liger"]
    return KernelsProfile(
        package=row["package"],
        version=row["version"],
        model_types=frozenset(row["model_types"]),
        compute_capability=(row["compute_capability"][0], row["compute_capability"][1]),
        source=row["source"],
    )
