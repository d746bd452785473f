"""The measuring program as a process, on a model of two layers and this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measured_cases import DATA

pytestmark = pytest.mark.integration
pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]
CASES = (
    {"id": "full", "method": "full"},
    {"id": "lora", "rank": 4, "pad": True},
    {"id": "bad", "optim": "nonsense"},
    {"id": "after", "eval": True, "save": True},
)
TINY = {"model": "tiny", "seq": 32, "steps": 2}


def measured(folder, *cases, options=(), code=0):
    file, out = folder / "cases.jsonl", folder / "rows.jsonl"
    file.write_text("".join(json.dumps({**TINY, **case}) + "\n" for case in cases))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.measuring", str(file), "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of one process, one of which could not run."""
    told = measured(tmp_path_factory.mktemp("measured"), *CASES, code=1)
    return {row["id"]: row for row in told}


@pytest.fixture(scope="module")
def recorded():
    return json.loads((DATA / "spread.jsonl").read_text().splitlines()[0])


def test_rows_are_those_of_the_data(rows, recorded):
    full, lora = rows["full"], rows["lora"]
    assert set(full) == set(lora) == set(recorded)
    assert set(full["case"]) == set(recorded["case"])
    assert (full["gpus"], full["rank"], full["ok"]) == (1, 0, True)
    assert full["trainable"] == full["params"] > lora["trainable"] > 0
    assert len(full["steps"]) == 2
    assert full["step_s"] == full["steps"][1]["s"] > 0
    assert full["host_peak_kib"] > 0


def test_sizes_of_a_cpu_are_unknown(rows):
    sizes = (
        "base_alloc",
        "static_alloc",
        "prepared_alloc",
        "peak_alloc",
        "peak_reserved",
        "device_used_end",
        "context",
    )
    assert {rows["full"][name] for name in sizes} == {None}


def test_an_evaluation_and_a_save_keep_the_peaks_of_the_training(rows, recorded):
    added = {"train_peak_alloc", "train_peak_reserved", "eval_peak_alloc", "save_peak_alloc"}
    assert set(rows["after"]) == set(recorded) | added


def test_a_case_that_cannot_run_is_told_and_the_next_one_runs(rows):
    assert list(rows) == [case["id"] for case in CASES]
    assert "nonsense" in rows["bad"]["error"]
    assert rows["after"]["ok"]


def test_each_rank_writes_a_row(tmp_path):
    told = measured(tmp_path, {"id": "two", "parallel": "ddp", "packing": True}, options=("--ranks", "2"))
    assert sorted((row["rank"], row["gpus"], row["ok"]) for row in told) == [(0, 2, True), (1, 2, True)]
    assert told[0]["case"]["packing"] is True
