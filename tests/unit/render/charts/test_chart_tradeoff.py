"""Speed against memory: a mark for each configuration, the front as the plan has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.render.charts.tradeoff import FAR, MARKS, SHAPES, by_speed, drawn
from ftplan.results import Placed
from ftplan.spec import RunConfig
from ftplan.units import GIB
from tests.unit.render.charts.svgs import check_inside, classed, marks, parsed

METHODS = ("full", "lora", "qlora", "llama-adapter")


@st.composite
def placed(draw):
    sizes = draw(st.lists(st.integers(0, 10**12), max_size=25))
    return [
        Placed(
            RunConfig(model="gpt2", method=draw(st.sampled_from(METHODS)), seq_len=index + 1),
            needed,
            1.0,
            draw(st.floats(0, 1e7)),
            fits=draw(st.booleans()),
            reason="<because>",
        )
        for index, needed in enumerate(sizes)
    ]


@given(placed(), st.integers(1, 10**12))
def test_each_configuration_that_is_not_far_has_one_mark(points, limit):
    root = parsed(by_speed(points, (), None, limit))
    check_inside(root)
    near = [one for one in points if one.needed_bytes <= FAR * limit]
    assert drawn(points, limit) == near
    found = [
        (int(mark.attrib["data-needed-bytes"]), float(mark.attrib["data-tokens-per-second"]), mark.attrib["data-fits"])
        for mark in marks(root, "data-needed-bytes")
    ]
    assert sorted(found) == sorted((one.needed_bytes, one.tokens_per_second, str(one.fits).lower()) for one in near)
    assert root.attrib["data-points"] == str(len(points))
    assert classed(root, "chosen") == []
    (line,) = classed(root, "limit")
    assert line.attrib["data-limit-bytes"] == str(limit)


@given(placed().filter(bool), st.integers(1, 10**12), st.data())
def test_the_chosen_one_is_marked_once_and_last_wherever_it_is(points, limit, data):
    chosen = data.draw(st.sampled_from(points))
    fixed = data.draw(st.sampled_from(points))
    root = parsed(by_speed(points, (), chosen.config, limit, marked=[fixed.config]))
    check_inside(root)
    (star,) = classed(root, "chosen")
    assert star is marks(root, "data-needed-bytes")[-1]
    assert star.attrib["data-needed-bytes"] == str(chosen.needed_bytes)
    assert len(classed(root, "marked")) == (fixed is not chosen)
    assert chosen in drawn(points, limit, {chosen.config})


@given(placed(), st.integers(10**6, 10**12), st.data())
def test_marks_are_where_their_figures_say(points, limit, data):
    near = drawn(points, limit)
    front = sorted((one for one in near if data.draw(st.booleans())), key=lambda one: one.needed_bytes)
    root = parsed(by_speed(points, front, None, limit))
    line = float(classed(root, "limit")[0].attrib["x1"])
    curves = classed(root, "front")
    assert len(curves) == (len(front) > 1)
    if not curves:
        return
    corners = [tuple(map(float, pair.split(","))) for pair in curves[0].attrib["points"].split()]
    assert len(corners) == len(front)
    for (x, _), one in zip(corners, front, strict=True):
        assert x - 56 == pytest.approx((line - 56) * one.needed_bytes / limit, abs=0.02)
    on_front = [mark for mark in marks(root, "data-front") if mark.attrib["data-front"] == "true"]
    assert len(on_front) == len(front)


def test_one_reason_why_it_does_not_fit_is_told():
    one = Placed(RunConfig(model="gpt2", method="full"), GIB, 1.0, 5.0, fits=False, reason="no room")
    root = parsed(by_speed([one], (), None, GIB))
    title = marks(root, "data-fits")[0].findtext("title")
    assert title.endswith("1.00 GiB, 5 tokens/s (no room)")


def test_nothing_at_all_is_an_empty_chart():
    root = parsed(by_speed([], (), None, 0))
    check_inside(root)
    assert marks(root, "data-fits") == []


def test_every_method_has_a_mark_of_its_own():
    assert set(SHAPES) == set(MARKS) == set(METHODS)
    assert len(set(SHAPES.values())) == 4
