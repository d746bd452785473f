from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.errors import DataError
from ftplan.launcher import lengths
from ftplan.results import to_json


def test_what_a_cutoff_takes_away() -> None:
    report = lengths.report([(10, True), (32, True), (33, True), (100, False)], cutoff=32)
    assert report == lengths.LengthReport(
        rows=4,
        tokens=175,
        mean_tokens=43.75,
        longest=100,
        cutoff=32,
        truncated_rows=2,
        lost_tokens=1 + 68,
        empty_rows=1,
        buckets=((32, 2), (64, 1), (128, 1)),
    )


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans())), st.integers(1, 4096))
def test_every_row_is_in_one_bucket(rows: list[tuple[int, bool]], cutoff: int) -> None:
    report = lengths.report(rows, cutoff)
    assert sum(count for _, count in report.buckets) == report.rows == len(rows)
    assert report.tokens - report.lost_tokens == sum(min(length, cutoff) for length, _ in rows)
    assert lengths.parse(to_json(report)) == report


def test_a_problem_is_raised_as_it_was_told() -> None:
    with pytest.raises(DataError, match="no rows") as caught:
        lengths.parse('{"error": {"message": "no rows", "hint": "give some", "field": "data"}}')
    assert caught.value.hint == "give some"


def test_the_command_runs_the_worker_module() -> None:
    assert lengths.argv("job.json")[1:] == ["-m", "ftplan.launcher.train.lengths", "job.json"]
