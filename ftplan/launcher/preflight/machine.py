"""Observes this machine: RAM that can be had now, limits of a process, shared memory, tools, disks."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.launcher.checkpoints import PREFIX
from ftplan.launcher.preflight.facts import Disk, Host
from ftplan.launcher.records import RunDir
from ftplan.profiles.detect import cgroup_folders

TOOLS: Final = ("g++", "ninja")
"""Programs with which DeepSpeed builds its kernels on first use."""

_ROOT: Final = Path("/")
_USED: Final = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
"""The file of a control group that tells its use, by the file that tells its limit (version 2, version 1)."""

_CACHES: Final = ("inactive_file", "active_file", "total_inactive_file", "total_active_file")
"""Pages of files in a group's memory.stat, which the system takes back when it needs them."""


def host() -> Host:
    """What this machine has now."""
    return Host(
        ram_available_bytes=available_bytes(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        shm_bytes=_shared_memory(),
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        open_files=_limit(resource.RLIMIT_NOFILE),
        tools={name: shutil.which(name) is not None for name in TOOLS},
        ninja_beside_python=Path(sys.executable).with_name("ninja").exists(),
    )


def available_bytes(root: Path = _ROOT) -> int:
    """RAM that processes can get now: what the system has available, or less where a control group limits it."""
    return max(0, min([_system_available(root), *_groups_available(root)]))


def disk(folder: Path) -> Disk:
    """The file system that a run in ``folder`` writes to, whether or not the folder is there yet.

    Its checkpoints give their room back to those that follow; those that were set aside do not. Raises InputError for
    what cannot be a folder.
    """
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise InputError(f"the run's folder cannot be used: {error.strerror}", field="run_dir") from error
    free = os.statvfs(there)
    saved = RunDir(folder).checkpoints.glob(f"{PREFIX}*/**/*")
    held = sum(path.stat().st_size for path in saved if path.is_file())
    return Disk(str(there), free.f_bavail * free.f_frsize, held)


def _system_available(root: Path) -> int:
    with suppress(OSError, ValueError, KeyError):
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _groups_available(root: Path) -> Iterator[int]:
    """Yield what each control group above this process has left, with the file pages it could give back."""
    for folder, file in cgroup_folders(root):
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                limit = int((group / file).read_text("ascii"))
                yield limit - int((group / _USED[file]).read_text("ascii")) + _cached(group)
            if group == root / "sys/fs/cgroup":
                break


def _cached(group: Path) -> int:
    found: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in _CACHES:
                found[name] = int(value)
    # Version 1 tells a group's own pages and, as totals, those with all groups below it.
    totals = {name: value for name, value in found.items() if name.startswith("total_")}
    return sum((totals or found).values())


def _shared_memory() -> int | None:
    with suppress(OSError):
        free = os.statvfs("/dev/shm")  # noqa: S108 - its size is looked at, nothing is written
        return free.f_bavail * free.f_frsize
    return None


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft
