"""A run's figures over its steps."""

import math

from hypothesis import given
from hypothesis import strategies as st

from ftplan.render.charts.lines import MOST_POINTS, figure, line
from tests.unit.render.charts.svgs import check_inside, classed, parsed

VALUES = st.lists(st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 5e-324]), max_size=60)


def corners(root):
    return [
        [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]
        for curve in classed(root, "curve")
    ]


@given(VALUES, st.none() | st.integers(1, 100))
def test_every_finite_value_is_drawn_inside(values, total):
    root = parsed(line("loss/step", range(1, len(values) + 1), values, total_steps=total))
    check_inside(root)
    drawn = [corner for piece in corners(root) for corner in piece]
    assert len(drawn) == sum(map(math.isfinite, values))
    xs = [x for x, _ in drawn]
    assert xs == sorted(xs)
    assert root.attrib["data-name"] == "loss-per-step"


@given(VALUES)
def test_what_is_not_finite_breaks_the_line(values):
    runs = sum(
        math.isfinite(value) and (index == 0 or not math.isfinite(values[index - 1]))
        for index, value in enumerate(values)
    )
    assert len(corners(parsed(line("loss", range(len(values)), values)))) == runs


def test_a_line_breaks_at_nan():
    assert [len(piece) for piece in corners(parsed(line("loss", range(5), [1.0, 2.0, math.nan, 3.0, 2.0])))] == [2, 2]


def test_the_last_step_is_told_with_its_value():
    root = parsed(line("loss", [10, 20], [2.5, 1.25], total_steps=40))
    (end,) = classed(root, "curve-end")
    assert (end.attrib["data-step"], end.attrib["data-value"]) == ("20", "1.25")
    assert [text.text for text in classed(root, "value")] == ["1.25 at step 20"]
    assert corners(root)[0][1][0] == float(end.attrib["cx"])


def test_nothing_yet_is_an_empty_chart():
    root = parsed(line("loss", [], []))
    check_inside(root)
    assert root.attrib["aria-label"] == "loss. nothing yet"
    assert corners(root) == []


def test_a_long_run_is_thinned_and_keeps_its_ends():
    steps = range(1, 5001)
    root = parsed(line("loss", steps, [1 / step for step in steps]))
    (piece,) = corners(root)
    assert len(piece) <= MOST_POINTS + 1
    assert classed(root, "curve-end")[0].attrib["data-step"] == "5000"


def test_figures_have_four_digits_or_all_before_the_point():
    assert [figure(value) for value in (0.123456, 12345.6, 1e9, 3)] == ["0.1235", "12,346", "1e+09", "3"]
