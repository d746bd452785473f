"""Estimates beside runs that no constant of the memory was fitted on: sizes, long sequences, features, offload."""

from statistics import fmean

import pytest

from benchmarks.measured_cases import spread_cases, unseen_cases
from ftplan.estimators.analytic import estimate

CASES = spread_cases() + unseen_cases()
WORST = 0.01
MEAN = 0.001


def error(case):
    told = estimate(case.config, case.model, case.cluster).peak_allocated_bytes
    row = case.row
    return told / (row.get("train_peak_alloc", row["peak_alloc"]) - row.get("base_alloc", 0)) - 1


def test_the_runs_reach_long_sequences_and_offload():
    assert {case.config.seq_len for case in CASES} >= {16384, 32768}
    assert any(case.config.offload != "none" for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_peak_allocated(case):
    assert abs(error(case)) <= WORST


def test_mean_error():
    assert fmean(abs(error(case)) for case in CASES) <= MEAN
