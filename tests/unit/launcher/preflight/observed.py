"""Facts and needs for tests: a machine with two good cards on which the run fits, to be changed."""

from __future__ import annotations

from typing import Any

from ftplan.estimators.checkpoint_size import CheckpointSize
from ftplan.launcher.preflight.facts import Disk, Facts, Host, Installed, Torch, TorchDevice
from ftplan.launcher.preflight.needs import Needs
from ftplan.profiles.cards_now import CardNow, CardProcess, CardsNow
from ftplan.spec import RunConfig
from ftplan.units import GIB

VERSIONS = {
    "torch": "2.13.0+cu130",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
}
MINIMUMS = {"torch": "2.11", "transformers": "5.17", "peft": "0.21", "deepspeed": "0.19.8"}
OTHER = CardProcess(4242, "python", 20 * GIB)


def card(free_gib: float = 23.5, **changes: Any) -> CardNow:
    fields = {"name": "NVIDIA GeForce RTX 4090", "total_bytes": 24 * GIB, "free_bytes": round(free_gib * GIB)}
    return CardNow(**(fields | changes))


def cards(*each: CardNow, driver: str = "580.65.06", installed: int | None = None) -> CardsNow:
    return CardsNow(driver, len(each) if installed is None else installed, each)


def torch(**changes: Any) -> Torch:
    device = TorchDevice("NVIDIA GeForce RTX 4090", (8, 9), bf16=True)
    fields = {
        "version": "2.13.0+cu130",
        "cuda": "13.0",
        "devices": (device, device),
        "architectures": ("sm_80", "sm_86", "sm_90", "sm_100", "compute_120"),
        "nccl": "2.27.7",
    }
    return Torch(**(fields | changes))


def host(**changes: Any) -> Host:
    fields = {
        "ram_available_bytes": 60 * GIB,
        "cores": 16,
        "shm_bytes": 8 * GIB,
        "locked_bytes": 8 * 2**20,
        "open_files": 65536,
        "tools": {"g++": True, "ninja": True},
    }
    return Host(**(fields | changes))


def packages(*, torch_cuda: str | None = "13.0", requirements: Any = (), **versions: str) -> Installed:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    held = {name: version for name, version in (VERSIONS | named).items() if version}
    return Installed(held, MINIMUMS, requirements, torch_cuda if "torch" in held else None)


def facts(**changes: Any) -> Facts:
    fields = {
        "host": host(),
        "installed": packages(),
        "cards": cards(card(), card()),
        "torch": torch(),
        "disk": Disk("/data", 100 * GIB),
    }
    return Facts(**(fields | changes))


def needs(**changes: Any) -> Needs:
    fields = {
        "config": RunConfig(model="Qwen-7B", sharding="ddp"),
        "card_bytes": (18 * GIB, 18 * GIB),
        "host_bytes": 32 * GIB,
        "packages": (),
        "size": CheckpointSize(GIB, 2 * GIB, 0, GIB),
        "keep": 2,
    }
    return Needs(**(fields | changes))
