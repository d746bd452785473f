"""Hosts that cards usually sit in: ``data/hosts.json``, which states the rule and says that all of it is assumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from ftplan.errors import UnknownNameError
from ftplan.profiles.device_schema import GpuProfile, HostProfile
from ftplan.profiles.packaged import packaged_json
from ftplan.units import GB, GIB


def load_host(name: str, *, gpus: int = 1) -> HostProfile:
    """Return the host called ``name`` (any case) with RAM and cores for ``gpus`` cards.

    Raises `UnknownNameError` if there is none.
    """
    row = _rows().get(name.strip().lower())
    if row is None:
        raise UnknownNameError("host", name, list_hosts(), field="host")
    return HostProfile(
        name=row["name"],
        memory_bytes=max(row["base_gib"], row["gib_per_gpu"] * gpus) * GIB,
        cores=max(row["base_cores"], row["cores_per_gpu"] * gpus),
        memory_bytes_per_second=row["memory_gb_per_second"] * GB,
        network_bytes_per_second=row["network_gb_per_second"] * GB,
        source=row["source"],
    )


def list_hosts() -> tuple[str, ...]:
    """Return the names of all hosts."""
    return tuple(_rows())


def default_host(gpus: Sequence[GpuProfile], *, memory_bytes: int | None = None) -> HostProfile:
    """Return the host assumed around ``gpus``, the devices of one node; ``memory_bytes`` is its RAM, where known."""
    parts = [load_host(name, gpus=count) for name, count in Counter(gpu.host for gpu in gpus).items()]
    host = HostProfile(
        name="+".join(part.name for part in parts),
        memory_bytes=sum(part.memory_bytes for part in parts),
        cores=sum(part.cores for part in parts),
        memory_bytes_per_second=min(part.memory_bytes_per_second for part in parts),
        network_bytes_per_second=min(part.network_bytes_per_second for part in parts),
        source="; ".join(part.source for part in parts),
    )
    if memory_bytes is None:
        return host
    source = f"RAM as stated; for the rest {host.source}"
    return replace(host, memory_bytes=memory_bytes, source=source, memory_assumed=False)


@cache
def _rows() -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in packaged_json("hosts.json")["hosts"]}
