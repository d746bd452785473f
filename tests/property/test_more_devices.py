"""What sharding promises: on twice as many cards of a kind, nothing needs more of each.

The promise is one about tensors. What a plan tells of bytes keeps it with three exceptions, each found here:

- Weights and states far too large are told without an estimate, by what they alone take: a bound from below, which
  says nothing about the same configuration on more cards, where it is near enough to be estimated.
- 4-bit weights under FSDP2 are whole on every card before they are sharded, on any number of cards. What the allocator
  wastes on them is fitted by what is short-lived, and more of them is where more ranks keep less: the fit rises by up
  to a tenth where the replay, which decides, falls.
- Shares are rounded up and offload has buffers for each rank: some bytes in a thousand.
"""

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import model_of

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.search import plan as search_plan
from ftplan.planner.search import replayed
from ftplan.spec import PlanRequest
from ftplan.units import GB

few = settings(max_examples=25)
"""Two plans each, with replays of what nearly fits: a second or more."""

ROUNDED = 1.01
"""Shares that do not divide, and offload's buffers, may take this much of the whole more."""

SMALL_CARDS = ("4GB", "6GB", "8GB", "RTX3060", "T4", "RTX2080Ti", "A100-40GB:8GB", "H100:10GB")
MODELS = ("Qwen2.5-0.5B", "Qwen-7B", "Llama-3.1-8B", "gpt-oss-20b", "DeepSeek-V2-Lite", "chatglm3-6b", "falcon-7b")


@st.composite
def doubled(draw):
    """The same request on some cards and on twice as many, with RAM for all of their processes."""
    card, count = draw(st.sampled_from(SMALL_CARDS)), draw(st.sampled_from((2, 3, 4)))
    pins = {
        "sharding": draw(st.sampled_from(("fsdp2", "zero3"))),
        "offload": draw(st.sampled_from(("none", "none", "optimizer", "optimizer+params"))),
        "gradient_checkpointing": draw(st.booleans()),
        "kernels": "none",
    }
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


def lacking(group):
    return group.rejection.lacking_bytes


def is_estimated(group):
    return "alone are too large" not in group.rejection.reason


def loads_whole(config):
    return (config.method, config.sharding) == ("qlora", "fsdp2")


@few
@given(doubled())
def test_twice_as_many_cards_are_never_worse(requests):
    """One test of both laws: the plans take the time."""
    fewer, more = requests
    plan, again = planned(fewer), planned(more)
    if plan.config is not None:
        fits_again(plan, again, more)
    elif again.config is None:
        lacks_no_more(plan, again)
    for group in memory_misses(plan):
        needs_no_more(group.config, fewer, more)


def fits_again(plan, again, more):
    """A plan fits with the same micro-batch, so that there is one."""
    told = replayed(plan.config, more, model_of(more.model), resolve_inventory(more.inventory))
    assert told.rejection is None
    assert told.estimate.peak_allocated_bytes <= ROUNDED * plan.estimate.peak_allocated_bytes
    assert again.config is not None


def lacks_no_more(plan, again):
    """The nearest miss, where it is one of an estimate."""
    before, after = memory_misses(plan), memory_misses(again)
    nearest = min(before, key=lacking, default=None)
    if nearest is None or not after or not is_estimated(nearest) or loads_whole(nearest.config):
        return
    rounding = (ROUNDED - 1) * nearest.rejection.needed_bytes
    assert min(map(lacking, after)) <= lacking(nearest) + rounding


def needs_no_more(config, fewer, more):
    """The tensors of what does not fit, and all that it needs but for the fit's exception."""
    before, after = estimated(config, fewer), estimated(config, more)
    assert after.peak_allocated_bytes <= ROUNDED * before.peak_allocated_bytes
    if not loads_whole(config):
        assert after.needed_bytes <= ROUNDED * before.needed_bytes
