"""Calibrations and recorded runs for tests: an H100 at the reference, and runs that took what they were predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ftplan import __version__
from ftplan.profiles.calibration import Calibration, DeviceFigures, RecordedRun, RunFigures
from ftplan.units import GIB

WHEN = "2026-11-22T10:00:00+00:00"


def calibration(device: str = "H100-SXM", *, at: str = WHEN, **figures: Any) -> Calibration:
    return Calibration(device, "580.65", "2.11.0", at, DeviceFigures(**figures))


def run(*, step_ratio: float = 1.0, excess_bytes: int = 0, **changes: Any) -> RecordedRun:
    predicted = RunFigures(process_bytes=10 * GIB, host_bytes=GIB, step_seconds=2.0)
    made = RecordedRun(
        run_id="20261122-100000-3f2a",
        finished_at=WHEN,
        ftplan=__version__,
        devices=("H100-SXM",),
        calibrated_at=(),
        ranks=1,
        model="Qwen2.5-7B",
        method="lora",
        sharding="none",
        offload="none",
        predicted=predicted,
        measured=RunFigures(10 * GIB + excess_bytes, GIB, 2.0 * step_ratio),
    )
    return replace(made, **changes)
