"""Checks of the host: RAM, disk, shared memory, limits of a process, threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ftplan.launcher.preflight.facts import Facts
from ftplan.launcher.preflight.findings import DISK, HOST_RAM, Finding, Status
from ftplan.launcher.preflight.needs import Needs
from ftplan.units import GIB, MIB

SHARED_MEMORY_BYTES: Final = GIB
"""Below this NCCL's buffers between cards may not fit: a container has 64 MiB of it unless told otherwise (NCCL user
guide, troubleshooting, shared memory)."""

LOCKED_BYTES: Final = 64 * MIB
"""Limit of locked memory below which InfiniBand cannot register its buffers; pinning by CUDA is not held to it."""

OPEN_FILES: Final = 4096
"""Files that loaders, NCCL and checkpoints of several ranks may have open; 1024 is what shells start with."""


def check_ram(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """RAM that can be had now, beside what the run's processes need of it."""
    available = facts.host.ram_available_bytes
    if needs is None:
        yield Finding(HOST_RAM, Status.OK, "now", "", {"available_bytes": available})
        return
    figures = {"needed_bytes": needs.host_bytes, "available_bytes": available}
    if needs.host_bytes <= available:
        yield Finding(HOST_RAM, Status.OK, "there is room for the run", "", figures)
        return
    fix = "end other programs, raise the container's limit, or plan with --host-memory and without offload"
    yield Finding(HOST_RAM, Status.ERROR, "too little is available now: the system would kill the run", fix, figures)


def check_disk(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """Room for the checkpoints that are kept, the one that is being written, and the result."""
    disk = facts.disk
    if disk is None:
        return
    free = disk.free_bytes + disk.held_bytes
    if needs is None or needs.size is None or not needs.saves:
        yield Finding(DISK, Status.OK, disk.folder, "", {"free_bytes": disk.free_bytes})
        return
    needed = needs.size.run_bytes(needs.keep)
    figures = {
        "checkpoint_bytes": needs.size.checkpoint_bytes,
        "checkpoints": needs.keep + 1,
        "final_bytes": needs.size.final_bytes,
        "needed_bytes": needed,
        "free_bytes": free,
    }
    message = f"{needs.keep} checkpoints, one more while it is written, and the result in {disk.folder}"
    if needed <= free:
        yield Finding(DISK, Status.OK, message, "", figures)
        return
    fix = "free some space, name another --run-dir" + (", or keep fewer: --keep 1" if needs.keep > 1 else "")
    yield Finding(DISK, Status.ERROR, f"no room for {message}", fix, figures)


def check_limits(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """Shared memory and limits that several processes run into."""
    host = facts.host
    several = needs is not None and needs.ranks > 1
    if several and host.shm_bytes is not None and host.shm_bytes < SHARED_MEMORY_BYTES:
        message = "little shared memory (/dev/shm) for several ranks"
        fix = "in a container: --shm-size=8g or --ipc=host"
        yield Finding("shared memory", Status.WARNING, message, fix, {"free_bytes": host.shm_bytes})
    if needs is not None and needs.nodes > 1 and host.locked_bytes is not None and host.locked_bytes < LOCKED_BYTES:
        message = "the limit of locked memory (ulimit -l) is low: NCCL over InfiniBand would fail"
        fix = "ulimit -l unlimited; in a container: --ulimit memlock=-1"
        yield Finding("locked memory", Status.WARNING, message, fix, {"limit_bytes": host.locked_bytes})
    if host.open_files is not None and host.open_files < OPEN_FILES:
        message = f"a process may open {host.open_files} files (ulimit -n)"
        yield Finding("open files", Status.WARNING, message, "ulimit -n 65536", {"limit": host.open_files})


def check_cores(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """A core for every rank: a rank without one waits for the others to launch its work."""
    if needs is None or needs.ranks <= facts.host.cores:
        return
    message = f"{needs.ranks} ranks share {facts.host.cores} core(s): each will wait for the others to launch its work"
    yield Finding("cores", Status.WARNING, message, "give the process more cores (container, taskset, scheduler)")
