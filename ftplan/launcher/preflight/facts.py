"""What was observed of this machine, this Python and the files of a run: observing makes these, checks read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ftplan.profiles.cards_now import NO_CARDS, CardsNow


@dataclass(frozen=True, slots=True)
class Host:
    """The machine beside its cards. Bytes and counts; None where there is no such thing, or no limit.

    ``ram_available_bytes`` is what can be had without swapping, within the limits of this process's control groups.
    ``shm_bytes`` is what is free in /dev/shm, ``locked_bytes`` and ``open_files`` are the soft limits of a process.
    ``tools`` maps programs to whether they are on the PATH; ``ninja_beside_python`` says that it is not, but installed.
    """

    ram_available_bytes: int
    cores: int
    shm_bytes: int | None = None
    locked_bytes: int | None = None
    open_files: int | None = None
    tools: Mapping[str, bool] = field(default_factory=dict)
    ninja_beside_python: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """``package`` says of itself that it needs ``other`` in the releases of ``specifier``, such as ``>=2.1,<3``."""

    package: str
    other: str
    specifier: str


@dataclass(frozen=True, slots=True)
class Installed:
    """Python's packages: versions, what ftplan's extra asks of them, and what they ask of one another.

    ``torch_cuda`` is the CUDA release torch was built for, empty for a build without CUDA, None if it does not tell.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    minimums: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()
    torch_cuda: str | None = None


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """A card as torch sees it."""

    name: str
    capability: tuple[int, int]
    bf16: bool


@dataclass(frozen=True, slots=True)
class Torch:
    """What torch says of itself in a process of its own; ``error`` is why it sees no card, where it says so.

    ``architectures`` are those it has kernels for, such as sm_90. ``broken`` maps modules to why they do not import.
    """

    version: str
    cuda: str | None
    error: str = ""
    devices: tuple[TorchDevice, ...] = ()
    architectures: tuple[str, ...] = ()
    nccl: str = ""
    broken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a run's folder: bytes free, and bytes of its checkpoints that are there already."""

    folder: str
    free_bytes: int
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it; None for what was not looked at. ``torch_problem`` is why torch could not be asked."""

    host: Host
    installed: Installed
    cards: CardsNow = NO_CARDS
    visible_devices: str | None = None
    torch: Torch | None = None
    torch_problem: str = ""
    disk: Disk | None = None
