"""LLaMA-Factory 0.9.5 on an H100, by configurations written by hand and by ftplan, beside what is told of them."""

import json
from functools import cache

import pytest

from benchmarks.measured_cases import DATA
from ftplan.workflows.estimating import estimate

ROWS = {row["id"]: row for row in map(json.loads, (DATA / "llamafactory.jsonl").read_text("utf-8").splitlines())}
REAL = [name for name, row in ROWS.items() if row["kind"] != "fake ranks"]
EMITTED = [name for name, row in ROWS.items() if row["kind"] == "emitted"]

SEVERAL_LENGTHS = "s-qwen1.5b-lora-mb4-mixed"
"""The allocator keeps blocks for each length of its batches, and one length is told."""
PROCESS_GROUP = "s-tinyllama-lora-torchrun-mb4"
"""One process under torchrun, for which `ftplan check` adds NCCL's memory as an assumption."""


@cache
def told(name):
    row = ROWS[name]
    return estimate(row["config"], row["gpus"]).estimate


def off(name, key, figure):
    return figure / ROWS[name]["measured"][key] - 1


def test_the_runs_are_as_many_as_told():
    assert len(REAL) == 16
    assert len(EMITTED) == 4


@pytest.mark.parametrize("name", REAL)
def test_peak_of_tensors_on_one_card(name):
    assert abs(off(name, "allocated_bytes", told(name).peak_allocated_bytes)) < 0.006


@pytest.mark.parametrize("name", EMITTED)
def test_process_of_emitted_configurations(name):
    """The card's memory of a run that ftplan's own files started."""
    assert abs(off(name, "process_bytes", told(name).process_bytes)) < 0.015


@pytest.mark.parametrize("name", [name for name in REAL if name not in (SEVERAL_LENGTHS, PROCESS_GROUP)])
def test_process_of_all(name):
    assert -0.04 < off(name, "process_bytes", told(name).process_bytes) < 0.035


@pytest.mark.parametrize("name", [name for name in ROWS if name not in REAL])
def test_peak_of_a_rank_of_two(name):
    """Run as one rank of two with collectives that answer at once: only what is allocated is as in a real run."""
    assert abs(off(name, "allocated_bytes", told(name).peak_allocated_bytes)) < 0.012
