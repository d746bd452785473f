"""``ftplan tune`` of the demo model in real processes, on this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ftplan.launcher import demo
from ftplan.workflows import planning

pytestmark = pytest.mark.integration
pytest.importorskip("trl")


def tune(folder: Path) -> tuple[dict[str, Any], float]:
    """The answer of the command as a user types it in ``folder``, and how long it took."""
    options = ("--gpus", "2xcpu:4GB", "--seq-len", "64", "--global-batch", "8", "--trials", "2", "--budget", "200s")
    command = [sys.executable, "-m", "ftplan", "tune", "--model", str(demo.model_path()), *options]
    environment = {**os.environ, "FTPLAN_DATA": str(folder / "data")}
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--out", "tuned", "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - started


def test_plans_are_measured_once_and_the_fastest_can_be_run(tmp_path: Path) -> None:
    first, _ = tune(tmp_path)
    results = [one["result"] for one in first["tried"]]
    assert len(results) == 2
    measured = [each for each in results if each["status"] == "measured"]
    assert measured
    assert all(each["tokens_per_second"] > 0 for each in measured)
    best = max(first["tried"], key=lambda one: one["result"]["tokens_per_second"] or 0.0)
    assert first["plan"]["config"] == best["config"]
    assert first["plan"]["reasons"][-1]["field"] == "tune"
    written = planning.load_plan(tmp_path / "tuned")
    assert written.config is not None
    assert written.config.model_dump(mode="json") == first["plan"]["config"]
    runs = (tmp_path / "data" / "runs.jsonl").read_text()
    assert len(runs.splitlines()) == len(measured)
    answers_from_the_folder(tmp_path, first, runs)


def answers_from_the_folder(folder: Path, first: dict[str, Any], runs: str) -> None:
    """The same call again starts no process, and records nothing twice."""
    log = folder / first["folder"] / "trials.log"
    before = log.stat().st_size
    again, seconds = tune(folder)
    assert seconds < 30
    assert again["seconds"] < 10
    assert [one["result"] for one in again["tried"]] == [one["result"] for one in first["tried"]]
    assert again["folder"] == first["folder"]
    assert log.stat().st_size == before
    assert (folder / "data" / "runs.jsonl").read_text() == runs
