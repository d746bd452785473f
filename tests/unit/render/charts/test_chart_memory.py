"""Memory by phase, by term, by rank: every byte is drawn, to scale."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.render.charts.drawing import TOP
from ftplan.render.charts.memory import LOW, MOST_ROWS, by_phase, by_rank, by_term
from ftplan.render.console import size
from ftplan.results import Phase, RankEstimate, Term
from ftplan.units import GIB, MIB
from tests.property.strategies import estimated, legal
from tests.unit.render.charts.svgs import check_inside, classed, marks, parsed

PHASES = tuple(Phase)
NAMES = st.sampled_from(["weights", "gradients", "mlp", "scratch", "a <b> & \x1b"])
TERMS = st.lists(
    st.builds(
        lambda name, held, alive: Term(name, held, tuple(alive), "", ""),
        NAMES,
        st.integers(0, 10**12),
        st.lists(st.sampled_from(PHASES), unique=True, max_size=7),
    ),
    max_size=12,
)


def held(root, phase):
    return [rect for rect in marks(root, "data-bytes") if rect.get("data-phase") == phase]


def total(terms, phase):
    return sum(term.bytes for term in terms if phase in term.alive)


@given(TERMS, st.integers(1, 10**12), st.sampled_from([290, LOW]))
def test_every_byte_of_a_phase_is_drawn_to_scale(terms, limit, height):
    root = parsed(by_phase(terms, limit, height=height))
    check_inside(root)
    (line,) = classed(root, "limit")
    foot, scale = axis(root, terms, limit)
    assert int(line.attrib["data-limit-bytes"]) == limit
    assert float(line.attrib["y1"]) == pytest.approx(foot - limit * scale, abs=0.011)
    for phase in PHASES:
        rects = held(root, phase)
        assert sum(int(rect.attrib["data-bytes"]) for rect in rects) == total(terms, phase)
        for rect in rects:
            assert float(rect.attrib["height"]) == pytest.approx(int(rect.attrib["data-bytes"]) * scale, abs=0.021)
        tops = [float(rect.attrib["y"]) for rect in rects]
        assert tops == sorted(tops, reverse=True)
        if rects:
            lowest = rects[0]
            assert float(lowest.attrib["y"]) + float(lowest.attrib["height"]) == pytest.approx(foot, abs=0.021)


def axis(root, terms, limit):
    """Where 0 is, and user units a byte: what is highest leaves a little room above it."""
    foot = max(float(line.attrib["y1"]) for line in classed(root, "grid"))
    highest = max(limit, *(total(terms, phase) for phase in PHASES))
    return foot, (foot - TOP) / (highest * 1.06)


@given(TERMS, st.integers(MIB, 10**12))
def test_the_limit_is_where_the_axis_says(terms, limit):
    root = parsed(by_phase(terms, limit))
    unit = {"GiB": GIB, "MiB": MIB}[next(text.text for text in classed(root, "tick"))]
    foot, scale = axis(root, terms, limit)
    for tick, line in zip(classed(root, "tick")[1:], classed(root, "grid"), strict=True):
        at = foot - float(tick.text.replace(",", "")) * unit * scale
        assert float(line.attrib["y1"]) == pytest.approx(at, abs=0.02)
    (label,) = classed(root, "limit-label")
    assert label.text == f"limit {size(limit)}"


@given(TERMS, st.dictionaries(st.sampled_from(PHASES), st.integers(0, 10**12)))
def test_what_a_phase_needs_beside_its_tensors_is_on_top(terms, tops):
    root = parsed(by_phase(terms, GIB, tops=tops))
    check_inside(root)
    for phase in PHASES:
        drawn = sum(int(rect.attrib["data-bytes"]) for rect in held(root, phase))
        assert drawn == max(total(terms, phase), tops.get(phase, 0))


@given(legal())
def test_the_phases_of_an_estimate_are_all_of_what_it_needs(case):
    told = estimated(*case)
    for rank in told.ranks:
        root = parsed(by_phase(rank.terms, rank.capacity_bytes, tops=rank.needed_by_phase))
        drawn = {p: sum(int(rect.attrib["data-bytes"]) for rect in held(root, p)) for p in PHASES}
        assert drawn == rank.needed_by_phase
        assert max(drawn.values()) == rank.needed_bytes
    tops = {phase: total(told.host.terms, phase) for phase in PHASES}
    root = parsed(by_phase(told.host.terms, told.host.capacity_bytes))
    assert {p: sum(int(rect.attrib["data-bytes"]) for rect in held(root, p)) for p in PHASES} == tops


def test_the_highest_phase_is_told_and_bold():
    terms = [Term("weights", GIB, PHASES, "", ""), Term("mlp", GIB, (Phase.LOSS,), "", "")]
    root = parsed(by_phase(terms, 4 * GIB))
    assert root.attrib["aria-label"] == "Memory by phase. highest in loss with 2.00 GiB, limit 4.00 GiB"
    assert [text.text for text in classed(root, "strong")] == ["loss", "2.00"]
    assert len(classed(root, "phase")) == 7


def test_a_small_size_on_a_large_axis_keeps_its_unit():
    root = parsed(by_phase([Term("weights", 2 * MIB, (Phase.LOAD,), "", "")], GIB))
    assert next(text.text for text in classed(root, "value")) == "2.0 MiB"


def test_a_small_axis_is_in_mib():
    root = parsed(by_phase([Term("weights", 2 * MIB, (Phase.LOAD,), "", "")], 8 * MIB))
    assert classed(root, "tick")[0].text == "MiB"
    assert next(text.text for text in classed(root, "value")) == "2.0"


def test_nothing_at_all_is_an_empty_chart():
    root = parsed(by_phase([], 0))
    check_inside(root)
    assert marks(root, "data-bytes") == []
    check_inside(parsed(by_term([], Phase.LOAD)))
    check_inside(parsed(by_rank([])))


@given(TERMS, st.sampled_from(PHASES))
def test_bars_of_terms_hold_every_byte_of_the_phase(terms, phase):
    root = parsed(by_term(terms, phase))
    check_inside(root)
    drawn = [int(rect.attrib["data-bytes"]) for rect in marks(root, "data-bytes")]
    assert sum(drawn) == total(terms, phase)
    assert drawn == sorted(drawn, reverse=True)


def test_many_terms_end_with_the_rest():
    terms = [Term(f"term {n}", 100 - n, (Phase.LOAD,), "", "") for n in range(MOST_ROWS + 5)]
    root = parsed(by_term(terms, Phase.LOAD))
    bars = marks(root, "data-bytes")
    assert len(bars) == MOST_ROWS + 1
    assert bars[-1].attrib["data-term"] == "5 smaller terms"
    assert sum(int(bar.attrib["data-bytes"]) for bar in bars) == sum(term.bytes for term in terms)


def rank(number, needed, capacity=24 * GIB, device="RTX3090"):
    return RankEstimate(number, device, needed, needed, needed, needed, capacity, needed <= capacity, Phase.LOSS, ())


def test_ranks_that_are_alike_share_a_bar():
    root = parsed(by_rank([rank(0, 5), rank(1, 5), rank(2, 7), rank(3, 5)]))
    bars = marks(root, "data-needed-bytes")
    assert [(bar.attrib["data-rank"], bar.attrib["data-needed-bytes"]) for bar in bars] == [
        ("0", "5"),
        ("2", "7"),
        ("3", "5"),
    ]
    assert [text.text for text in classed(root, "name")] == [
        "ranks 0 to 1, RTX3090",
        "rank 2, RTX3090",
        "rank 3, RTX3090",
    ]
    assert len(classed(root, "frame")) == 3


@given(st.lists(st.builds(rank, st.just(0), st.integers(0, 10**12), st.integers(1, 10**12)), max_size=40))
def test_a_rank_s_bar_is_to_the_scale_of_its_frame(ranks):
    root = parsed(by_rank(ranks))
    check_inside(root)
    bars = marks(root, "data-needed-bytes")
    assert len(bars) <= MOST_ROWS
    for bar, frame in zip(bars, classed(root, "frame"), strict=True):
        needed, capacity = (int(bar.attrib[f"data-{each}-bytes"]) for each in ("needed", "capacity"))
        assert ("kind-fits" in bar.attrib["class"]) == (needed <= capacity)
        width, framed = float(bar.attrib["width"]), float(frame.attrib["width"])
        if width > 1 and framed > 1:
            assert width / framed == pytest.approx(needed / capacity, rel=0.02)
