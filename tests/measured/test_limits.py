"""The replayed stream beside runs that had just enough memory or just too little. Data: benchmarks/data/README.md."""

import pytest

from benchmarks.limits import needed_of_cap, summary
from benchmarks.measured_cases import limit_cases

LIMITS = limit_cases()

UNEXPLAINED = {
    "t-g2-lora": "eager attention of Gemma 2 takes more than its program says",
    "t-l8-lora-32k": "Liger's kernels pick other tiles on the GPU machine",
    "h-bloom-full": "BLOOM's alibi and baddbmm take more than their program says",
}
"""Runs whose limit is told too low, by their id before the cap."""

SAMPLE = LIMITS[::4]
"""A quarter: all of them take a minute (``python -m benchmarks.limits``)."""


def is_unexplained(case):
    return case.id.partition("-cap")[0] in UNEXPLAINED


def label(case):
    return f"{case.label} {'expandable' if case.row['expandable_segments'] else 'default'}"


def test_the_runs_are_many_and_near_their_limits():
    assert len(LIMITS) > 200
    assert len({case.row["gpu"] for case in LIMITS}) == 2
    survived = sum(case.row["ok"] for case in LIMITS)
    assert 0.4 < survived / len(LIMITS) < 0.6
    assert sum(case.row["expandable_segments"] for case in LIMITS) > 40


@pytest.mark.parametrize("case", [case for case in SAMPLE if not case.row["ok"]], ids=label)
def test_what_ran_out_of_memory_is_not_said_to_fit(case):
    if is_unexplained(case):
        pytest.xfail(UNEXPLAINED[case.id.partition("-cap")[0]])
    assert needed_of_cap(case) > 1


@pytest.mark.parametrize("case", [case for case in SAMPLE if case.row["ok"]], ids=label)
def test_what_ran_is_said_to_fit_with_a_twentieth_more_or_seldom_a_sixth(case):
    assert needed_of_cap(case) < 1.16


def test_rejections_of_what_ran_are_few():
    counts = summary((case, needed_of_cap(case)) for case in SAMPLE if case.row["ok"])
    assert counts["false_rejects"] <= 0.4 * counts["runs"]
    assert counts["false_rejects"] - counts["false_rejects_within_5_percent"] <= 0.1 * counts["runs"]
