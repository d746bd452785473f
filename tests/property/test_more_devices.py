"""What sharding promises: on twice as many cards of a kind, nothing needs more of each.

The promise is one about tensors. What a plan tells of bytes keeps it with three exceptions, each found here:

- Weights and states far too large are told without an estimate, by what they alone take: a bound from below, which
  says nothing about the same configuration on more cards, where it is near enough to be estimated.
- 4-bit weights under FSDP2 are whole on every card before they are sharded, on any number of cards. What the allocator
  wastes on them is fitted by what is short-lived, and more of them is where more ranks keep less: the fit rises by up
  to a tenth where the replay, which decides, falls.
- Shares are rounded up and offload has buffers for each rank: some bytes in a thousand.
"""

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import model_of

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.search import plan as search_plan
from ftplan.planner.search import replayed
from ftplan.spec import PlanRequest
from ftplan.units import GB

few = settings(max_examples=25)
"""Two plans each, on cards so small that several tiers are looked at."""

ROUNDED = 1.01
"""Shares that do not divide, and offload's buffers, may take this much of the whole more."""

SMALL_CARDS = ("4GB", "6GB", "8GB", "RTX3060", "T4", "RTX2080Ti", "A100-40GB:8GB", "H100:10GB")
MODELS = ("Qwen2.5-0.5B", "Qwen-7B", "Llama-3.1-8B", "gpt-oss-20b", "DeepSeek-V2-Lite", "chatglm3-6b", "falcon-7b")


@st.composite
def doubled(draw):
    """The same request on some cards and on twice as many, with RAM for all of their processes."""
    card, count = draw(st.sampled_from(SMALL_CARDS)), draw(st.sampled_from((2, 3, 4)))
    pins = {"sharding": draw(st.sampled_from(("fsdp2", "zero3")))}
    pins |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "offload": st.sampled_from(("none", "optimizer", "optimizer+params")),
                "gradient_checkpointing": st.booleans(),
            },
        )
    )
    request = PlanRequest(
        model=draw(st.sampled_from(MODELS)),
        inventory=on(card, count),
        method=draw(st.sampled_from(("full", "lora", "qlora"))),
        global_batch=2 * count * draw(st.sampled_from((1, 2, 4))),
        seq_len=draw(st.sampled_from((128, 1000, 2048))),
        pins=pins,
    )
    return request, request.model_copy(update={"inventory": on(card, 2 * count)})


def on(card, count):
    return parse_inventory(f"{count}x{card}", host_memory_bytes=4000 * GB)


def planned(request):
    return search_plan(request, model_of(request.model), resolve_inventory(request.inventory))


def estimated(config, request):
    return estimate(config, model_of(request.model), resolve_inventory(request.inventory), margin=request.margin)


def memory_misses(plan):
    return [group for group in plan.rejections if group.rejection.rule == "memory"]


def is_estimated(group):
    return "alone are too large" not in group.rejection.reason


def loads_whole(config):
    return (config.method, config.sharding) == ("qlora", "fsdp2")


@few
@given(doubled())
def test_a_sharded_plan_fits_twice_as_many_cards_with_the_same_micro_batch(requests):
    fewer, more = requests
    plan = planned(fewer)
    assume(plan.config is not None)
    again = replayed(plan.config, more, model_of(more.model), resolve_inventory(more.inventory))
    assert again.rejection is None
    assert again.estimate.peak_allocated_bytes <= ROUNDED * plan.estimate.peak_allocated_bytes
    assert planned(more).config is not None


@few
@given(doubled())
def test_tensors_of_what_does_not_fit_are_no_larger_on_twice_as_many_cards(requests):
    fewer, more = requests
    for group in memory_misses(planned(fewer)):
        before, after = estimated(group.config, fewer), estimated(group.config, more)
        assert after.peak_allocated_bytes <= ROUNDED * before.peak_allocated_bytes
        if not loads_whole(group.config):
            assert after.needed_bytes <= ROUNDED * before.needed_bytes


@settings(max_examples=10, suppress_health_check=[HealthCheck.filter_too_much])  # most fit, or are told by a bound
@given(doubled())
def test_the_nearest_miss_lacks_no_more_on_twice_as_many_cards(requests):
    fewer, more = requests
    plan = planned(fewer)
    assume(plan.config is None)
    again = planned(more)
    assume(again.config is None)
    before, after = memory_misses(plan), memory_misses(again)
    assume(before)
    assume(after)
    nearest = min(before, key=lambda group: group.rejection.lacking_bytes)
    assume(is_estimated(nearest) and not loads_whole(nearest.config))
    rounding = (ROUNDED - 1) * nearest.rejection.needed_bytes
    assert min(group.rejection.lacking_bytes for group in after) <= nearest.rejection.lacking_bytes + rounding
