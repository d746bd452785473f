"""Plans confirmed by a trace; the trace itself is told what to answer."""

from dataclasses import replace

import pytest

from ftplan.errors import InputError
from ftplan.workflows import confirming, planning


@pytest.fixture
def plan():
    return planning.plan(planning.plan_request("1xRTX4090", model="Qwen2.5-7B", global_batch=8))


def answers(monkeypatch, plan, *more_bytes):
    """Let each trace find that much more than the closed form did; returns the configurations that were traced."""
    seen = []

    def trace(config, request):
        first = planning.plan(plan.request).estimate if config == plan.config else None
        base = first or next(a.estimate for a in _all(request) if a.config == config)
        needed = base.needed_bytes + more_bytes[min(len(seen), len(more_bytes) - 1)]
        seen.append(config)
        return replace(
            base, estimator="trace", needed_bytes=needed, fits=needed <= base.capacity_bytes * (1 - request.margin)
        )

    monkeypatch.setattr(confirming, "trace", trace)
    return seen


def _all(request):
    from ftplan.planner.search import search
    from ftplan.profiles.models import load_model

    found = search(request, load_model(request.model), confirming._cluster(request))
    return [*found.fitting, *(candidate for looked in found.tiers for candidate in looked.near)]


def test_a_plan_that_fits_has_the_traced_estimate(plan, monkeypatch):
    answers(monkeypatch, plan, 1000)
    told = confirming.confirmed(plan)
    assert told.config == plan.config
    assert told.estimate.estimator == "trace"
    assert told.reasons[-1].value == "trace"
    assert told.rejections == plan.rejections


def test_a_plan_that_does_not_gives_way_to_one_that_does(plan, monkeypatch):
    room = plan.estimate.capacity_bytes - plan.estimate.needed_bytes
    seen = answers(monkeypatch, plan, room, 0)
    told = confirming.confirmed(plan)
    assert seen[0] == plan.config
    assert told.config == seen[-1] != plan.config
    assert told.estimate.needed_bytes < plan.estimate.needed_bytes
    assert told.request == plan.request
    assert told.rejections[0].rejection.rule == "trace"
    assert told.rejections[0].config == plan.config
    assert told.config.micro_batch * told.config.accumulation == 8


def test_when_nothing_is_confirmed_there_is_no_plan(plan, monkeypatch):
    seen = answers(monkeypatch, plan, 1 << 40)
    told = confirming.confirmed(plan)
    assert told.config is None
    assert told.estimate is None
    assert 1 <= len(seen) <= confirming.ATTEMPTS


def test_a_run_goes_on_where_nothing_can_be_traced(plan, monkeypatch):
    def refuse(*_):
        raise InputError("no such architecture")

    monkeypatch.setattr(confirming, "trace", refuse)
    told, note = confirming.before_run(plan, made_before=False)
    assert told == plan
    assert "no such architecture" in note


def test_cpus_need_no_confirmation(monkeypatch):
    monkeypatch.setattr(confirming, "trace", lambda *_: pytest.fail("traced"))
    plan = planning.plan(planning.plan_request("1xcpu:16GB", model="SmolLM2-135M", global_batch=4, seq_len=128))
    assert confirming.before_run(plan, made_before=False) == (plan, "")


def test_a_plan_from_a_file_is_checked_and_kept(plan, monkeypatch):
    answers(monkeypatch, plan, 1 << 40)
    told, _ = confirming.before_run(plan, made_before=True)
    assert told.config == plan.config
    assert not told.estimate.fits


def test_what_cannot_be_traced_points_at_the_plans_own_option():
    plan = planning.plan(planning.plan_request("1xcpu:16GB", model="SmolLM2-135M", global_batch=4, seq_len=128))
    with pytest.raises(InputError, match="CPU") as error:
        confirming.confirmed(plan)
    assert error.value.hint == "leave --confirm out"


def test_a_confirmed_plan_keeps_the_time_of_the_whole_training(monkeypatch):
    request = planning.plan_request("1xRTX4090", model="Qwen2.5-7B", global_batch=8, training={"samples": 1000})
    plan = planning.plan(request)
    answers(monkeypatch, plan, 0)
    assert confirming.confirmed(plan).estimate.training == plan.estimate.training is not None
