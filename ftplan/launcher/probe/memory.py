"""What is in use of a device and of the host, by this process and all others."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Final

import torch

KIB: Final = 2**10


def driver_used_bytes() -> int | None:
    """What the driver says is in use of the first visible device; None if it tells nobody.

    Asked without torch, which would make a context, and with it some of what is to be measured.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no such library, or no driver that answers: both raise classes of the library's own
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(_first_visible(pynvml)).used)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _first_visible(nvml: ModuleType) -> object:
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def beside_allocator_bytes() -> int:
    """What is in use of the current device, by whomever, less what the caching allocator reserved."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def taken_bytes(before: int, after: int) -> int:
    """What came into use from ``before`` to ``after``; raises RuntimeError where others gave back more meanwhile."""
    if after < before:
        raise RuntimeError("other processes gave memory of the device back meanwhile: leave it alone and try again")
    return after - before


def resident_bytes() -> int:
    """Resident memory of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(status["VmRSS"].split()[0]) * KIB
