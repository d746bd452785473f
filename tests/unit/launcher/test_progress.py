"""The parts of the worker's progress that need no torch."""

from __future__ import annotations

import pytest

from ftplan.launcher.events import RankMemory
from ftplan.launcher.train import progress
from ftplan.launcher.train.progress import Pace, RankReport, Seen, scalars, totals


def test_a_token_attends_to_its_row_and_to_no_more_than_the_length_of_the_plan() -> None:
    seen = Seen().with_rows(2, 10, limit=64).with_rows(1, 100, limit=64)
    assert seen == Seen(tokens=120, token_pairs=20 * 10 + 100 * 64, largest=100)


def test_ranks_are_summed_but_for_the_largest() -> None:
    nothing = RankMemory(0, None, None, None, None)
    reports = [RankReport(Seen(10, 100, 5), nothing), RankReport(Seen(20, 300, 8), nothing)]
    assert totals(reports) == Seen(30, 400, 8)


def test_time_left_goes_by_the_steps_after_the_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((100.0, 130.0, 132.0, 136.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    pace = Pace(step=20)
    assert pace.at(21, 60) == (30.0, 30.0 * 39)
    assert pace.at(22, 60) == (32.0, 2.0 * 38)
    assert pace.at(24, 60) == (36.0, 2.0 * 36)


def test_trackers_get_what_is_known() -> None:
    memory = (RankMemory(0, None, None, 7, 8), RankMemory(1, 4, 5, 6, None))
    assert dict(scalars(memory, {"mfu": None, "tokens_per_second": 9.0})) == {
        "tokens_per_second": 9.0,
        "memory_process_bytes/rank_0": 7.0,
        "memory_host_bytes/rank_0": 8.0,
        "memory_allocated_bytes/rank_1": 4.0,
        "memory_reserved_bytes/rank_1": 5.0,
        "memory_process_bytes/rank_1": 6.0,
    }
