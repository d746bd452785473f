"""Curves in text."""

from __future__ import annotations

import math

import pytest

from ftplan.render.curves import plot, sparkline


def test_heights_go_from_lowest_to_highest() -> None:
    assert sparkline(range(8), 80) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 1, 2], 80) == "█▁▅"
    assert sparkline([2, 2, 2], 80) == "▄▄▄"
    assert sparkline([], 80) == ""


@pytest.mark.parametrize("count", [1, 7, 79, 80, 81, 5000])
def test_no_curve_is_wider_than_the_page(count: int) -> None:
    values = [math.sin(index / 9) for index in range(count)]
    assert len(sparkline(values, 80)) == min(count, 80)
    lines = plot(values, 80, 5)
    assert len(lines) == 5
    assert max(map(len, lines)) == min(count, 80)


def test_many_values_are_told_by_their_means() -> None:
    assert sparkline([0, 2, 4, 6, 8, 10, 12, 14], 4) == sparkline([1, 5, 9, 13], 4)


def test_what_is_no_number_is_left_out() -> None:
    assert sparkline([1, math.nan, 2, math.inf], 80) == "▁ █ "
    assert sparkline([math.nan], 80) == " "


def test_a_plot_stands_on_its_lowest_line() -> None:
    assert plot([0, 15, 7], 80, 2) == [
        " █",
        "▁██",
    ]
