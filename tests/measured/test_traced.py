"""The trace beside a sample of the measured runs; ``python -m benchmarks.traced`` compares with every one."""

from __future__ import annotations

import pytest

from benchmarks.measured_cases import capped_cases, engine_cases, known_cases, unseen_cases, worst_ranks
from benchmarks.traced import engine_errors, errors, settings
from ftplan.estimators.trace.running import traced
from ftplan.units import GIB

ALLOCATED, RESERVED = 0.005, 0.03
"""Tolerances, with room for libraries newer than those that were measured; with the same ones nearly all are below
0.0001 and 0.01."""
SAMPLE = (
    "k-l1-full-bf16",
    "k-q05-full-adafactor",
    "k-q05-full-amp32",
    "k-q7-lora-eager",
    "k-q7-qlora-prep",
    "k-ddp-full",
    "k-fsdp2-full-amp",
    "k-fsdp2-lora",
    "n-moe-full",
    "n-q3-pack",
    "n-tiny-fp16",
    "n-smol-trl-full",
    "n2-fsdp2-offload",
    "n2-ddp-accum",
)
ENGINE = ("r-q05-lora", "r2-ddp-lora")
"""Runs of our own engine; TRL's head makes a thread's first product, whose workspace decides what is reserved."""
CAPPED = ("c-l1-full-bf16", "c-q05-full-amp32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FTPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "traces"))


def cases(wanted):
    found = {case.id: case for case in worst_ranks((*known_cases(), *unseen_cases()))}
    return [pytest.param(found[name], id=name) for name in wanted]


@pytest.mark.parametrize("case", cases(SAMPLE))
def test_peaks(case):
    found = errors(case)
    assert abs(found["allocated"]) < ALLOCATED
    assert abs(found["reserved"]) < RESERVED


@pytest.mark.parametrize("name", ENGINE)
def test_peaks_of_our_own_engine(name):
    (case,) = [case for case in engine_cases() if case.id == name]
    found = engine_errors(case)
    assert abs(found["allocated"]) < ALLOCATED
    assert abs(found["reserved"]) < RESERVED


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("name", CAPPED)
def test_the_smallest_cap(name, expandable):
    """Every capped run of a case survived exactly where the smallest cap says."""
    runs = [
        case for case in capped_cases() if case.id.startswith(name) and case.row["expandable_segments"] is expandable
    ]
    assert runs
    needed = traced(settings(runs[0])).needed_bytes
    for case in runs:
        assert (needed <= case.row["case"]["cap_gib"] * GIB) is case.row["ok"], case.id
