"""The replayed stream beside runs that had just enough memory or just too little. Data: benchmarks/data/README.md."""

from functools import cache

import pytest

from benchmarks.limits import needed_of_cap, summary, usable
from benchmarks.measured_cases import alone_cases, limit_cases, sharded_limit_cases
from ftplan.estimators.tape.replaying import replayed
from ftplan.estimators.workload import Workload

LIMITS = limit_cases()

SAMPLE = LIMITS[::2]
"""Half: all of them take two minutes (``python -m benchmarks.limits``)."""


@cache
def needed(place):
    return needed_of_cap(SAMPLE[place])


def places(*, survived):
    return [place for place, case in enumerate(SAMPLE) if case.row["ok"] == survived]


def label(place):
    case = SAMPLE[place]
    return f"{case.label} {'expandable' if case.row['expandable_segments'] else 'default'}"


def test_the_runs_are_many_and_near_their_limits():
    assert len(LIMITS) > 200
    assert len({case.row["gpu"] for case in LIMITS}) == 2
    survived = sum(case.row["ok"] for case in LIMITS)
    assert 0.4 < survived / len(LIMITS) < 0.6
    assert sum(case.row["expandable_segments"] for case in LIMITS) > 40


@pytest.mark.parametrize("place", places(survived=False), ids=label)
def test_what_ran_out_of_memory_is_not_said_to_fit(place):
    assert needed(place) > 1


@pytest.mark.parametrize("place", places(survived=True), ids=label)
def test_what_ran_is_said_to_fit_with_a_twentieth_more_or_seldom_a_sixth(place):
    assert needed(place) < 1.16


def test_rejections_of_what_ran_are_few():
    counts = summary((SAMPLE[place], needed(place)) for place in places(survived=True))
    assert counts["false_rejects"] <= 0.4 * counts["runs"]
    assert counts["false_rejects"] - counts["false_rejects_within_5_percent"] <= 0.1 * counts["runs"]


def test_a_card_is_usable_to_95_percent():
    counts = usable((SAMPLE[place], needed(place)) for place in places(survived=True))
    assert counts["usable_percent_mean"] >= 95
    assert counts["rejected_5_percent_above"] <= 0.2 * counts["configurations"]


@pytest.mark.parametrize(
    "case", [case for case in alone_cases() if case.row["case"]["cap_gib"] is None], ids=lambda case: case.id
)
def test_a_run_in_a_process_of_its_own_reserves_what_is_told(case):
    reserved, _ = replayed(Workload(case.config, case.model, case.cluster), case.cluster.gpus[0], 2**40)
    assert reserved == pytest.approx(case.row["peak_reserved"], rel=0.0015)


@pytest.mark.parametrize("case", sharded_limit_cases(), ids=lambda case: case.label)
def test_fsdp2_fits_by_the_replay_as_it_did(case):
    """With expandable segments to half a percent; with the default allocator what failed is not let pass."""
    if not case.row["ok"]:
        assert needed_of_cap(case) > 1
    elif case.config.expandable_segments:
        assert needed_of_cap(case) < 1.005
