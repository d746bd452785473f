"""Bars with names and figures, and one step by its parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.render.charts.bars import MOST_LETTERS, Row, bars
from ftplan.render.charts.steps import PARTS, by_part
from ftplan.results import StepTime
from tests.unit.render.charts.svgs import check_inside, classed, marks, parsed

SECONDS = st.floats(0, 1e6)


@given(
    st.lists(
        st.builds(Row, st.text(max_size=40), st.floats(0, 1e12), st.text(max_size=9), st.just("kind-mlp")), max_size=20
    )
)
def test_bars_are_as_long_as_their_figures(rows):
    root = parsed(bars(rows, "title", "told", name="terms"))
    check_inside(root)
    drawn = classed(root, "term")
    assert len(drawn) == len(rows)
    longest = max((row.length for row in rows), default=0)
    for row, bar in zip(rows, drawn, strict=True):
        if row.length > longest / 50:
            widest = max(float(each.attrib["width"]) for each in drawn)
            assert float(bar.attrib["width"]) / widest == pytest.approx(row.length / longest, rel=0.02)


def test_a_long_name_is_cut_and_told_in_full_on_pointing():
    root = parsed(bars([Row("n" * 50, 1.0, "1 s", "kind-other")], "title", "told", name="step"))
    (name,) = classed(root, "name")
    assert name.text == "n" * (MOST_LETTERS - 1) + "…"
    assert classed(root, "term")[0].findtext("title") == "n" * 50 + ": 1 s"


@given(st.builds(StepTime, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.just("compute")))
def test_each_part_of_a_step_that_takes_time_has_a_bar(step):
    root = parsed(by_part(step))
    check_inside(root)
    found = {bar.attrib["data-part"]: float(bar.attrib["data-seconds"]) for bar in marks(root, "data-part")}
    assert found == {part: getattr(step, part) for part in PARTS if getattr(step, part) > 0}


def test_each_part_has_a_colour_of_its_own():
    assert len({kind for _, kind in PARTS.values()}) == len(PARTS)
