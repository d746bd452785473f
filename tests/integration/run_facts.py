"""What tests of real runs look at: losses in a run's folder, and processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ftplan.launcher import monitor
from ftplan.launcher.events import Stepped
from ftplan.launcher.records import RunDir


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each step; of a step trained twice, the later one."""
    events = monitor.read_all(RunDir(run_dir).metrics)
    return {event.step: event.loss for event in events if isinstance(event, Stepped)}


def runs(pid: int) -> bool:
    """Whether a process is there and not only waits for its parent to notice its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def may_administer() -> bool:
    """Whether this process may mount disks and make network namespaces (Linux's CAP_SYS_ADMIN, number 21)."""
    told = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    return bool(int(told, 16) >> 21 & 1)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
