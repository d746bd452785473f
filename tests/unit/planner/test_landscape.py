"""Everything that a search estimated, by speed and memory."""

from dataclasses import replace

import pytest

from ftplan.planner.landscape import landscape, without_refused
from ftplan.profiles.models import load_model
from tests.unit.planner.plans import cluster, planned, request

SMALL = {"gpus": "2x24GB", "model": "Qwen2.5-0.5B", "seq_len": 512}


def seen(known=(), **fields):
    asked = request(**{**SMALL, **fields})
    return landscape(asked, load_model(asked.model), cluster(asked.inventory.text), known)


def test_it_holds_what_the_plan_was_chosen_from():
    plan, found = planned(**SMALL), seen()
    configs = [one.config for one in found]
    assert len(configs) == len(set(configs))
    assert plan.config in configs
    assert {one.config for one in plan.alternatives} <= set(configs)
    assert {one.config for one in plan.pareto} <= {one.config for one in found if one.fits}
    assert len(found) <= plan.search.estimated


def test_it_is_in_order_of_size_and_says_why_something_is_out():
    found = seen(gpus="1x8GB", model="Qwen2.5-1.5B", method="full")
    assert [one.needed_bytes for one in found] == sorted(one.needed_bytes for one in found)
    assert found
    assert all(one.fits == (not one.reason) for one in found)
    assert any(one.reason.startswith("does not fit") for one in found)


def test_a_better_estimate_takes_the_place_of_the_search_s():
    plan = planned(**SMALL)
    better = replace(plan.estimate, needed_bytes=plan.estimate.needed_bytes + 12345)
    assert plan.config is not None
    found = seen(((plan.config, better),))
    (mine,) = [one for one in found if one.config == plan.config]
    assert mine.needed_bytes == better.needed_bytes
    assert len(found) == len(seen())


def test_a_configuration_that_the_search_never_saw_is_added():
    plan = planned(**SMALL)
    other = plan.config.model_copy(update={"lora_rank": 3})
    found = seen(((other, plan.estimate),))
    assert len(found) == len(seen()) + 1
    assert [one.fits for one in found if one.config == other] == [True]


def test_one_that_does_not_fit_says_so():
    plan = planned(**SMALL)
    found = seen(((plan.config, replace(plan.estimate, fits=False)),))
    assert [(one.fits, one.reason) for one in found if one.config == plan.config] == [(False, "does not fit")]


@pytest.mark.parametrize("batch", [1, 3])
def test_of_a_batch_that_does_not_split_only_what_is_known_is_left(batch):
    plan = planned(**SMALL)
    assert seen(global_batch=batch) == ()
    (one,) = seen(((plan.config, plan.estimate),), global_batch=batch)
    assert (one.config, one.needed_bytes) == (plan.config, plan.estimate.needed_bytes)


def test_nothing_that_a_plan_refused_is_said_to_fit():
    """The fit lets full fine-tuning of Bloom pass on a card that the allocator then cannot hold it on."""
    asked = {"gpus": "1x5GB", "model": "bloom-560m", "seq_len": 512, "method": "full"}
    plan = planned(**asked)
    found = seen(known=((plan.config, plan.estimate),), **asked)
    refused = [group.config for group in plan.rejections if group.rejection.rule == "memory"]
    by_fit = [one.config for one in found if one.fits]
    assert set(refused) & set(by_fit), "the case shows nothing any more"
    told = without_refused(found, plan.rejections, plan.config)
    assert len(told) == len(found)
    fitting = [one for one in told if one.fits]
    assert not {one.config for one in fitting} & set(refused)
    assert plan.config in [one.config for one in fitting]
