from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import cluster, model_of, pins, requests

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.rules import first_rejection
from ftplan.planner.search import plan as search_plan
from ftplan.results import Plan, from_json, to_json
from ftplan.spec import PlanRequest

OFFLOADED = "optimizer+params"

few = settings(max_examples=30)
"""A plan takes a tenth of a second to a few seconds, most where nothing fits."""


def planned(request):
    return search_plan(request, model_of(request.model), resolve_inventory(request.inventory))


def ranks_of(request, config):
    return 1 if config.sharding == "none" else request.inventory.world_size


def all_configs(plan):
    chosen = [plan.config] if plan.config is not None else []
    return [*chosen, *(one.config for one in plan.alternatives), *(group.config for group in plan.rejections)]


@settings(max_examples=60)
@given(requests())
def test_a_plan_keeps_what_every_plan_promises(request):
    plan = planned(request)
    keeps_the_global_batch_exactly(plan, request)
    honours_pins_and_method(plan, request)
    accounts_for_what_it_looked_at(plan)
    gives_a_rule_and_a_reason_for_every_rejection(plan, request)
    is_legal_and_fits_with_its_margin(plan, request)
    assert from_json(Plan, to_json(plan)) == plan


def keeps_the_global_batch_exactly(plan, request):
    for config in all_configs(plan):
        assert config.micro_batch * config.accumulation * ranks_of(request, config) == request.global_batch


def honours_pins_and_method(plan, request):
    for config in all_configs(plan):
        assert {field: getattr(config, field) for field in request.pins} == request.pins
        assert request.method in ("auto", config.method)


def accounts_for_what_it_looked_at(plan):
    assert plan.search.candidates > 0
    rejected = sum(group.count for group in plan.rejections)
    assert 0 <= rejected <= plan.search.candidates
    assert (plan.config is None) == (rejected == plan.search.candidates)


def gives_a_rule_and_a_reason_for_every_rejection(plan, request):
    for group in plan.rejections:
        assert group.rejection.rule
        assert group.rejection.reason
        assert group.rejection.hint
        assert group.count > 0
        if group.rejection.rule in ("memory", "host-memory"):
            assert group.rejection.lacking_bytes > 0
        else:
            found = first_rejection(group.config, model_of(request.model), resolve_inventory(request.inventory))
            assert found == group.rejection


def is_legal_and_fits_with_its_margin(plan, request):
    if plan.config is None:
        return
    assert first_rejection(plan.config, model_of(request.model), resolve_inventory(request.inventory)) is None
    for rank in plan.estimate.ranks:
        assert rank.needed_bytes <= (1 - request.margin) * rank.capacity_bytes
    assert plan.estimate.host_bytes <= plan.estimate.host.capacity_bytes


SMALLER = ("RTX4090:{}GB", st.integers(4, 24), "RTX4090"), ("A100-80GB:{}GB", st.integers(8, 80), "A100-80GB")


@few
@given(st.data(), st.sampled_from(SMALLER), st.sampled_from((1, 2, 4)))
def test_a_plan_that_fits_a_card_fits_the_same_card_with_more_memory(data, card, count):
    text, sizes, whole = card
    gpus = f"{count}x" + text.format(data.draw(sizes))
    request = data.draw(requests(gpus=st.just(gpus)))
    plan = planned(request)
    assume(plan.config is not None)
    more = f"{count}x{whole}"
    assert cluster(more).gpus[0].usable_bytes >= cluster(gpus).gpus[0].usable_bytes
    # What the search's fit puts just beyond the card was replayed.
    assert estimate(plan.config, model_of(request.model), cluster(more), margin=request.margin, replays=True).fits
    again = planned(request.model_copy(update={"inventory": parse_inventory(more)}))
    assert again.config is not None
    if request.objective != "memory":  # that looks for the least of all methods
        order = ["full", "lora", "qlora"]
        assert order.index(again.config.method) <= order.index(plan.config.method)


@few
@example(PlanRequest(model="gemma-2-9b", inventory=parse_inventory("2x7GB"), method="qlora"), {"offload": OFFLOADED})
@given(requests(gpus=st.sampled_from(("1x4GB", "1x8GB", "2x8GB", "2xT4", "2xcpu:4GB")), pins=st.just({})), pins)
def test_a_pin_never_finds_what_the_free_search_does_not(request, pinned):
    """Tiers of quality first: whatever fits with pins fits without them, in as good a tier."""
    assume(planned(request).config is None)
    asked = {field: value for field, value in pinned.items() if field not in OUTSIDE_THE_SPACE}
    assert planned(request.model_copy(update={"pins": asked})).config is None


OUTSIDE_THE_SPACE = {
    "lora_rank",
    "lora_targets",
    "lora_dropout",
    "optimizer",
    "packing",
    "kernels",
    "expandable_segments",
    "sharding",
}
"""Pins that ask for what the free search never tries."""
