"""The NVIDIA cards as they are now: free memory, who holds the rest, and modes that keep a run from starting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

from ftplan.profiles.detect import driver, text_of, visible_handles

ComputeMode = Literal["default", "exclusive", "prohibited"]
_COMPUTE_MODES: Final[dict[int, ComputeMode]] = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}
"""NVML's numbers: 1 and 3 let a single thread or process in."""


@dataclass(frozen=True, slots=True)
class CardProcess:
    """A process on a card; ``bytes`` is None where the driver does not tell."""

    pid: int
    name: str
    bytes: int | None


@dataclass(frozen=True, slots=True)
class CardNow:
    """A visible card: bytes in all and free, the processes on it, and how it lets others in.

    ``splits`` says that MIG is on: without an instance in ``CUDA_VISIBLE_DEVICES`` the card cannot be used whole.
    """

    name: str
    total_bytes: int
    free_bytes: int
    processes: tuple[CardProcess, ...] = ()
    compute_mode: ComputeMode = "default"
    splits: bool = False


@dataclass(frozen=True, slots=True)
class CardsNow:
    """The driver (empty without one), how many cards it sees, and those that are visible, in CUDA's order."""

    driver: str
    installed: int
    cards: tuple[CardNow, ...]


NO_CARDS: Final = CardsNow("", 0, ())


def cards_now() -> CardsNow:
    """What the driver says now; nothing without a driver."""
    with driver() as nvml:
        if nvml is None:
            return NO_CARDS
        cards = tuple(card for handle in visible_handles(nvml) if (card := _card(nvml, handle)) is not None)
        return CardsNow(text_of(nvml.nvmlSystemGetDriverVersion()), nvml.nvmlDeviceGetCount(), cards)


def _card(nvml: ModuleType, handle: object) -> CardNow | None:
    """One card; None if the driver does not tell its memory."""
    with suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return CardNow(
            name=text_of(nvml.nvmlDeviceGetName(handle)),
            total_bytes=memory.total,
            free_bytes=memory.free,
            processes=tuple(_processes(nvml, handle)),
            compute_mode=_compute_mode(nvml, handle),
            splits=_splits(nvml, handle),
        )
    return None


def _processes(nvml: ModuleType, handle: object) -> Iterator[CardProcess]:
    found: list[Any] = []
    with suppress(nvml.NVMLError):
        found += nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    with suppress(nvml.NVMLError):
        found += nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
    for process in {each.pid: each for each in found}.values():
        name = ""
        with suppress(nvml.NVMLError):
            name = text_of(nvml.nvmlSystemGetProcessName(process.pid)).rpartition("/")[2]
        yield CardProcess(process.pid, name, process.usedGpuMemory)


def _compute_mode(nvml: ModuleType, handle: object) -> ComputeMode:
    with suppress(nvml.NVMLError):
        return _COMPUTE_MODES.get(nvml.nvmlDeviceGetComputeMode(handle), "default")
    return "default"


def _splits(nvml: ModuleType, handle: object) -> bool:
    """Whether MIG is on; a handle that is an instance of MIG itself has no such mode."""
    with suppress(nvml.NVMLError):
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    return False
