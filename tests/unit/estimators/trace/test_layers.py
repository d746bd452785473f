"""Which layers are kept of a pattern."""

import pytest

from ftplan.estimators.trace.layers import reduction


def prints(text: str) -> list[tuple[object, ...]]:
    return [(letter,) for letter in text]


@pytest.mark.parametrize(
    ("pattern", "kept", "copies"),
    [
        ("a" * 32, "aaaa", 28),
        ("sf" * 10, "sfsfsfsf", 6),
        ("d" + "m" * 26, "dmmmm", 22),  # a dense layer first
        ("sssssf" * 8, "sssssf" * 4, 4),
        ("sssssf" * 7 + "ss", "sssssf" * 4 + "ss", 3),  # the last period is cut short
        ("abcdefgh", "abcdefgh", 0),  # no pattern
        ("aaaa", "aaaa", 0),  # too few to leave one out
    ],
)
def test_kept(pattern, kept, copies):
    reduced = reduction(prints(pattern))
    assert "".join(pattern[index] for index in reduced.kept) == kept
    assert reduced.copies == copies
    assert list(reduced.units) == sorted(reduced.units)


def test_the_units_in_the_middle_are_whole_periods():
    reduced = reduction(prints("sf" * 12))
    for unit in (reduced.lower, reduced.lower + 1):
        assert reduced.units.count(unit) == 2


def test_more_units_for_sharded_runs():
    reduced = reduction(prints("a" * 32), 6)
    assert len(reduced.kept) == 6
    assert reduced.copies == 26
    assert reduced.lower == 2
