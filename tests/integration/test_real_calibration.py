"""A real calibration of this machine's CPU: torch in processes of its own, gloo between two; some ten seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

ESTIMATE = ("estimate", "--model", "SmolLM2-135M", "--gpus", "cpu:4GB", "--seq-len", "128")
RATES = ("matrix_flops_per_second", "memory_bytes_per_second", "launch_seconds")


def ftplan(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "ftplan", *arguments]
    environment = {**os.environ, "FTPLAN_DATA": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def estimated(folder: Path) -> Any:
    return json.loads(ftplan(folder, *ESTIMATE, "--json"))


def test_a_calibration_is_used_until_it_is_reset(tmp_path: Path) -> None:
    before = estimated(tmp_path)
    (made,) = json.loads(ftplan(tmp_path, "calibrate", "--gpus", "cpu", "--json"))["calibrations"]
    assert (made["device"], made["failures"]) == ("cpu", {})
    figures = made["figures"]
    assert 2e8 < figures["context_bytes"] < 2e9
    assert all(figures[name] > 0 for name in RATES)
    if (os.cpu_count() or 1) > 1:
        assert (figures["ranks"], figures["link_bytes_per_second"] > 0) == (2, True)

    after = estimated(tmp_path)
    assert after["basis"]["calibrations"][0]["measured_at"] == made["measured_at"]
    assert after["step_seconds"] != before["step_seconds"]
    assert "calibrated on" in ftplan(tmp_path, *ESTIMATE)
    assert json.loads(ftplan(tmp_path, "calibrate", "--show", "--json"))["calibrations"] == [made]

    assert "calibration.json" in ftplan(tmp_path, "calibrate", "--reset")
    assert estimated(tmp_path) == before
