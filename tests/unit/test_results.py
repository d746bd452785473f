import json

import pytest
from pydantic import ValidationError

from ftplan.results import (
    Estimate,
    Phase,
    Plan,
    Provenance,
    Rejection,
    Term,
    Timeline,
    from_json,
    to_json,
    to_jsonable,
)
from ftplan.workflows import estimating, planning


def term(name, size, *alive, provenance=Provenance.ANALYTIC):
    return Term(name, size, alive, "why", "where", provenance)


TIMELINE = Timeline(
    (
        term("weights", 100, *Phase),
        term("activations", 30, Phase.FORWARD, Phase.LOSS, Phase.BACKWARD),
        term("logits", 50, Phase.LOSS),
        term("gradients", 40, Phase.BACKWARD, Phase.OPTIMIZER),
        term("states", 40, Phase.OPTIMIZER),
    )
)


def test_phases_are_in_the_order_of_a_run():
    assert [str(phase) for phase in Phase] == ["load", "forward", "loss", "backward", "optimizer", "eval", "save"]


@pytest.mark.parametrize(
    ("phase", "size"),
    [("load", 100), ("forward", 130), ("loss", 180), ("backward", 170), ("optimizer", 180), ("eval", 100)],
)
def test_a_phase_is_the_sum_of_what_is_alive_in_it(phase, size):
    assert TIMELINE.bytes_at(Phase(phase)) == size
    assert TIMELINE.by_phase[Phase(phase)] == size


def test_every_phase_has_a_figure():
    assert list(TIMELINE.by_phase) == list(Phase)
    assert set(Timeline(()).by_phase.values()) == {0}


def test_the_peak_is_the_first_of_the_highest_phases():
    assert TIMELINE.peak == (Phase.LOSS, 180)
    assert (TIMELINE.peak_phase, TIMELINE.peak_bytes) == TIMELINE.peak


def test_what_is_held_through_is_alive_in_every_phase():
    assert TIMELINE.held_through_bytes == 100


@pytest.mark.parametrize(
    ("figures", "worst"),
    [
        (["measured", "traced", "analytic", "assumed"], "assumed"),
        (["assumed", "measured"], "assumed"),
        (["traced", "analytic"], "analytic"),
        (["measured", "traced"], "traced"),
        (["measured"], "measured"),
        ([], "measured"),
    ],
)
def test_a_total_reports_its_worst_provenance(figures, worst):
    assert Provenance.worst(Provenance(figure) for figure in figures) == worst


def test_a_timeline_reports_its_worst_provenance():
    assert TIMELINE.provenance is Provenance.ANALYTIC
    guessed = Timeline((*TIMELINE.terms, term("guess", 1, Phase.EVAL, provenance=Provenance.ASSUMED)))
    assert guessed.provenance is Provenance.ASSUMED


@pytest.mark.parametrize(
    ("needed", "available", "lacking"), [(120, 100, 20), (100, 120, -20), (None, 100, None), (100, None, None)]
)
def test_a_rejection_counts_what_is_missing(needed, available, lacking):
    assert Rejection("memory", "too small", needed_bytes=needed, available_bytes=available).lacking_bytes == lacking


@pytest.fixture(scope="module")
def plan():
    return planning.plan(planning.plan_request("2x24GB", model="Qwen-7B", pins={"lora_rank": 8}))


@pytest.fixture(scope="module")
def estimate():
    return estimating.estimate({"model": "Qwen-7B", "method": "qlora"}, "2x24GB").estimate


def test_an_estimate_survives_json(estimate):
    assert from_json(Estimate, to_json(estimate)) == estimate


def test_a_plan_survives_json(plan):
    assert plan.config is not None
    assert from_json(Plan, to_json(plan)) == plan


def test_a_plan_without_a_configuration_survives_json():
    nothing = planning.plan(planning.plan_request("1x1GB", model="Qwen-7B"))
    assert nothing.config is None
    assert from_json(Plan, to_json(nothing)) == nothing


def test_json_is_one_document_with_a_final_newline(plan):
    text = to_json(plan)
    assert text.endswith("}\n")
    assert json.loads(text) == to_jsonable(plan)


@pytest.mark.parametrize("document", ["", "{", "[]", "{}", '{"request": 1}', "null"])
def test_json_that_is_no_plan_is_refused(document):
    with pytest.raises(ValidationError):
        from_json(Plan, document)


def sizes_and_times(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from sizes_and_times(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from sizes_and_times(inner, name)
    else:
        yield name, value


def test_sizes_in_json_are_integers(plan):
    found = [value for name, value in sizes_and_times(to_jsonable(plan)) if name.endswith("bytes")]
    assert found
    assert all(value is None or type(value) is int for value in found)
