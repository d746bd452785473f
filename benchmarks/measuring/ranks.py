"""Cases on several devices: each under a torchrun of its own, whose ranks write a row each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from benchmarks.measuring.case import Case


def run_ranks(lines: Iterable[str], out: Path, ranks: int, budget_seconds: float, timeout_seconds: float) -> int:
    """Measure the case of each line on ``ranks`` devices until the budget is spent; the number that failed."""
    started = time.monotonic()
    failed = 0
    for line in lines:
        if time.monotonic() - started > budget_seconds:
            print("budget reached before", line, flush=True)
            break
        failed += not _launched(line, out, ranks, timeout_seconds)
    return failed


def _launched(line: str, out: Path, ranks: int, timeout_seconds: float) -> bool:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["-m", "benchmarks.measuring", "--rank-of", line, "--out", str(out)]
    with subprocess.Popen(command) as torchrun:
        try:
            return torchrun.wait(timeout_seconds) == 0
        except subprocess.TimeoutExpired:
            print("no end within", timeout_seconds, "s:", line, flush=True)
            torchrun.terminate()  # it ends its ranks; killed, it would leave them on the devices
            return False


def run_rank(case: Case, out: Path) -> NoReturn:
    """Measure ``case`` as the rank that this process is, and end without the libraries' teardown, which may hang.

    A rank without memory ends like one that ran. After an error torchrun ends the others, which would wait for it.
    """
    from benchmarks.measuring.run import measured
    from benchmarks.measuring.session import append, told

    row = measured(case)
    append(row, out)
    if row["rank"] == 0 or "error" in row:
        print(told(row), row.get("trace", "")[-700:], flush=True)
    os._exit("error" in row)
