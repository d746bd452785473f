"""The smallest allocator that a case survives: bisection of capped runs between what tensors and what caching took.

Each run has a process of its own: the addresses that earlier runs gave back decide what fits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.measuring.case import Case
from benchmarks.measuring.run import Row
from benchmarks.measuring.session import GIB, told

NEAR: Final = 0.004
"""Part of the cap to which a limit is told."""
HOPELESS: Final = 3
"""Cases that may fail before the rest is left out."""


def run_caps(cases: Iterable[Case], out: Path, budget_seconds: float) -> int:
    """Measure each case uncapped and then capped, into ``out``, until the budget is spent; the number that failed."""
    started = time.monotonic()
    failed = 0
    for case in cases:
        if time.monotonic() - started > budget_seconds:
            print("budget reached before", case.id, flush=True)
            break
        uncapped = alone(case, out)
        print(told(uncapped), flush=True)
        if not uncapped.get("ok"):
            failed += 1
            print(uncapped.get("trace") or uncapped.get("oom", ""), flush=True)
            if failed > HOPELESS:
                break
            continue
        print(f"  {bisected(case, uncapped, out)}", flush=True)
    return failed


def alone(case: Case, out: Path) -> Row:
    """The row of ``case``, measured in a process of its own, which writes it to ``out``."""
    command = [sys.executable, "-m", "benchmarks.measuring", "--rank-of", case.as_line(), "--out", str(out)]
    code = subprocess.run(command, check=False).returncode
    lines = out.read_text("utf-8").splitlines() if out.exists() else []
    row: Row = json.loads(lines[-1]) if lines else {}
    return row if row.get("id") == case.id else {"id": case.id, "rank": 0, "error": f"ended with {code} and no row"}


def bisected(case: Case, uncapped: Row, out: Path) -> str:
    """The caps that were tried, each with + if the case survived; nothing on a device without an allocator."""
    if uncapped["peak_alloc"] is None:
        return "no allocator to cap"
    low, high = uncapped["peak_alloc"] / GIB, uncapped["peak_reserved"] / GIB
    tried: list[str] = []
    for _ in range(case.tries):
        if high - low < NEAR * high:
            break
        cap = round((low + high) / 2, 4)
        row = alone(case.capped(cap), out)
        if "error" in row:
            return " ".join([*tried, row["error"][:80]])
        tried.append(f"{cap:.3f}{'+' if row['ok'] else '-'}")
        low, high = (low, cap) if row["ok"] else (cap, high)
    return " ".join(tried)
