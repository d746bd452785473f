"""Many cases in one process on one device, which is emptied between them."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from accelerate.state import AcceleratorState, GradientState, PartialState

from benchmarks.measuring.case import Case
from benchmarks.measuring.device import Device, device_of
from benchmarks.measuring.run import Row, measured

GIB: Final = 2**30
HOPELESS: Final = 3
"""Cases that may fail before any has run."""


def run_cases(cases: Iterable[Case], out: Path, budget_seconds: float) -> int:
    """Measure each case into ``out`` until the budget is spent; the number of those that failed."""
    started = time.monotonic()
    failed = done = 0
    for case in cases:
        if time.monotonic() - started > budget_seconds:
            print("budget reached before", case.id, flush=True)
            break
        row = fresh(case, out)
        failed, done = failed + ("error" in row), done + ("error" not in row)
        if "error" in row and failed == 1:
            print(row["trace"], flush=True)
        print(told(row), flush=True)
        if failed >= HOPELESS and not done:
            print("everything fails: stopping", flush=True)
            break
    return failed


def fresh(case: Case, out: Path) -> Row:
    """The row of ``case`` on an emptied device, written to ``out``."""
    device = device_of(0)
    clean(device)
    row = measured(case, base_alloc=device.allocated())
    append(row, out)
    return row


def clean(device: Device) -> None:
    """Back to an empty allocator without a cap, and to libraries that have not started."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    for _ in range(3):
        gc.collect()
    device.forget()
    device.cap(None)


def append(row: Row, out: Path) -> None:
    """One more line; ranks write beside each other, so that each row is one write."""
    with out.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def told(row: Row) -> str:
    """A row in one line."""
    if "error" in row:
        return f"{row['id']} rank {row['rank']} ERR {row['error'][:300]}"
    sizes = " ".join(f"{name}={gib(row[name])}" for name in ("peak_alloc", "peak_reserved", "device_used_end"))
    return f"{row['id']} ok={row['ok']} {sizes} step={row['step_s']}"


def gib(size_bytes: int | None) -> str:
    """Bytes in GiB, as the line tells them."""
    return "unknown" if size_bytes is None else f"{size_bytes / GIB:.3f}"
