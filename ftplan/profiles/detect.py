"""The machine this runs on: its NVIDIA cards with the memory free now, its RAM and its cores. Needs no torch.

NVML numbers cards by PCI bus, as ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` does; ``CUDA_VISIBLE_DEVICES`` is honoured. AMD cards
are not looked for: name them in the inventory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Final

from ftplan.errors import InputError, UnknownNameError
from ftplan.profiles.device_schema import GpuProfile, HostProfile, Node
from ftplan.profiles.gpus import load_cpu, load_gpu
from ftplan.profiles.hosts import default_host
from ftplan.profiles.size_classes import size_class
from ftplan.units import GIB, MIB

_ROOT: Final = Path("/")


def detect_node() -> Node:
    """Return this machine: its visible cards, or one CPU process where no driver answers."""
    gpus = detect_gpus()
    host = detect_host(gpus)
    return Node(gpus=gpus or (load_cpu(host.memory_bytes),), host=host)


def detect_gpus() -> tuple[GpuProfile, ...]:
    """Return the visible NVIDIA cards; ``usable_bytes`` is what is free now, whoever holds the rest.

    Empty without a driver. Raises `InputError` for a card whose memory the driver does not tell.
    """
    with driver() as nvml:
        return () if nvml is None else tuple(_card(nvml, handle) for handle in visible_handles(nvml))


def driver_version() -> str:
    """Return the version of the NVIDIA driver, empty without one."""
    with driver() as nvml:
        return "" if nvml is None else text_of(nvml.nvmlSystemGetDriverVersion())


def visible_names() -> tuple[str, ...]:
    """Return what ``CUDA_VISIBLE_DEVICES`` would have to hold to show each of the visible cards alone."""
    with driver() as nvml:
        return () if nvml is None else tuple(text_of(nvml.nvmlDeviceGetUUID(each)) for each in visible_handles(nvml))


@contextmanager
def driver() -> Iterator[ModuleType | None]:
    """NVML, or None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def text_of(told: str | bytes) -> str:
    """Text as NVML tells it: older versions tell bytes."""
    return told.decode() if isinstance(told, bytes) else told


def detect_host(gpus: tuple[GpuProfile, ...] = (), *, root: Path = _ROOT) -> HostProfile:
    """Return this machine's RAM (physical, or less where a cgroup limits it) and the cores this process may use.

    Bandwidths are those of the host that ``gpus`` usually sit in. ``root`` is where ``/proc`` and ``/sys`` are.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    host = default_host(gpus or (load_cpu(physical),))
    return replace(
        host,
        name="local",
        memory_bytes=min([physical, *_cgroup_limits(root)]) // MIB * MIB,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        source=f"RAM and cores of this machine; for the rest {host.source}",
        memory_assumed=False,
    )


def visible_handles(nvml: ModuleType) -> Iterator[object]:
    """Yield the handles in ``CUDA_VISIBLE_DEVICES``, up to the first that names no card, as CUDA does; else all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = nvml.nvmlDeviceGetCount()
    names = [str(index) for index in range(count)] if visible is None else visible.split(",")
    for name in (name.strip() for name in names):
        with suppress(nvml.NVMLError):
            if name.isdecimal() and int(name) < count:
                yield nvml.nvmlDeviceGetHandleByIndex(int(name))
                continue
            if name.startswith(("GPU-", "MIG-")):
                yield nvml.nvmlDeviceGetHandleByUUID(name)
                continue
        return


def _card(nvml: ModuleType, handle: object) -> GpuProfile:
    name = text_of(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        raise InputError(f"the driver does not tell the memory of {name}", hint="name the card in --gpus") from error
    card = _known(name, memory.total) or _unknown(name, memory.total, _capability(nvml, handle))
    usable = memory.free // MIB * MIB
    return replace(card, memory_bytes=memory.total, usable_bytes=usable, memory_provenance="measured")


def _known(name: str, total_bytes: int) -> GpuProfile | None:
    """Find the card by name; the size goes first, because one name may be sold with 10 and with 12 GB."""
    for spelling in (f"{name} {round(total_bytes / GIB)}GB", name):
        with suppress(UnknownNameError):
            return load_gpu(spelling)
    return None


def _unknown(name: str, total_bytes: int, capability: tuple[int, int] | None) -> GpuProfile:
    """Stand in a size class, but with the generation that the driver states."""
    card = size_class(max(1, round(total_bytes / GIB)))
    modern = capability is not None and capability >= (8, 0)
    return replace(
        card,
        name=name,
        compute_capability=capability,
        bf16=modern,
        flash_attention_2=modern,
        source=f"{name} is not in the catalogue; {card.source}",
    )


def _capability(nvml: ModuleType, handle: object) -> tuple[int, int] | None:
    with suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return int(major), int(minor)
    return None


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits of this process's control group and of every group above it (versions 1 and 2)."""
    for folder, file in cgroup_folders(root):
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                yield int((group / file).read_text("ascii"))
            if group == root / "sys/fs/cgroup":
                break


def cgroup_folders(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each folder that may limit this process, with the name of the limit in it."""
    base = root / "sys/fs/cgroup"
    yield base, "memory.max"
    yield base / "memory", "memory.limit_in_bytes"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield base / path.lstrip("/"), "memory.max"
            elif "memory" in controllers.split(","):
                yield base / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
