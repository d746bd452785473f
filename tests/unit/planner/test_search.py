from dataclasses import replace

import pytest
from plans import cluster, estimated, planned, request

from ftplan.errors import BatchError, InputError, UnknownNameError
from ftplan.estimators.analytic import estimate
from ftplan.planner.ranking import ALTERNATIVES, NEAR_EQUAL, SAME_SPEED, WORTH_MACHINERY, rank
from ftplan.planner.search import RANK_MAY_COST, examine, search
from ftplan.profiles.models import load_model


def findings(gpus="2x24GB", model="Qwen-7B", **fields):
    return search(request(gpus, model, **fields), load_model(model), cluster(gpus))


def kind(config):
    return (config.method, config.sharding, config.offload, config.gradient_checkpointing)


def test_the_plan_fits_with_the_margin_asked_for():
    plan = planned(margin=0.1)
    assert plan.config is not None
    assert plan.estimate.fits
    assert plan.estimate.needed_bytes <= 0.9 * plan.estimate.capacity_bytes


def test_a_wider_margin_rejects_more():
    narrow, wide = (findings(margin=margin) for margin in (0.0, 0.3))
    assert len(wide.tiers[0].fitting) < len(narrow.tiers[0].fitting)


def test_where_the_allocator_rejects_all_that_seemed_to_fit_the_tiers_passed_over_get_their_turn():
    plan = planned("2xT4", "falcon-7b", global_batch=4)
    assert plan.config is not None
    assert plan.config.offload == "optimizer+params"
    assert any(group.rejection.rule == "memory" and group.config.offload == "none" for group in plan.rejections)


def test_everything_looked_at_either_fits_or_is_rejected():
    found = findings()
    fitting = list(found.fitting)
    assert found.looked_at == len(fitting) + sum(group.count for group in found.rejected) > 0
    assert len(fitting) <= found.estimated <= found.looked_at
    assert all(candidate.estimate.fits and candidate.rejection is None for candidate in fitting)


def test_rejections_are_counted_once_each():
    plan = planned()
    assert sum(group.count for group in plan.rejections) == sum(group.count for group in findings().rejected)
    assert plan.search.candidates == findings().looked_at
    assert plan.search.seconds > 0


def test_the_nearest_miss_comes_first_and_what_is_no_matter_of_bytes_last():
    lacking = [group.rejection.lacking_bytes for group in planned("1x8GB").rejections]
    counted = [size for size in lacking if size is not None]
    assert counted == sorted(counted)
    assert lacking == counted + [None] * (len(lacking) - len(counted))


def test_rejections_are_grouped_by_rule_method_and_sharding():
    groups = [
        (group.rejection.rule, group.config.method, group.config.sharding) for group in planned("1x8GB").rejections
    ]
    assert len(set(groups)) == len(groups)


@pytest.mark.parametrize(
    ("gpus", "model", "method"),
    [
        ("2x24GB", "Qwen-7B", "lora"),
        ("1x80GB", "Qwen-7B", "lora"),
        ("1x12GB", "Qwen-7B", "qlora"),
        ("2xRTX4090", "Qwen2.5-32B", "qlora"),
    ],
)
def test_auto_takes_the_best_method_that_fits(gpus, model, method):
    assert planned(gpus, model).config.method == method


def test_lora_is_not_left_while_it_fits_even_if_qlora_is_faster():
    plan = planned("2x24GB")
    assert plan.config.method == "lora"
    assert "qlora" in {one.config.method for one in plan.alternatives} | {
        group.config.method for group in plan.rejections
    }


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_method_asked_for_is_kept(method):
    plan = planned("4x80GB", method=method)
    assert plan.config.method == method
    assert {one.config.method for one in plan.alternatives} == {method}


def test_where_nothing_fits_there_is_no_plan_but_every_reason():
    plan = planned("1x1GB")
    assert plan.config is None
    assert plan.estimate is None
    assert plan.reasons == ()
    assert plan.alternatives == ()
    assert plan.rejections[0].rejection.lacking_bytes > 0


def test_a_batch_that_does_not_split_is_an_error_with_the_nearest():
    with pytest.raises(BatchError) as caught:
        planned("3x24GB", global_batch=32)
    assert caught.value.nearest == (30, 33)


def test_a_pinned_single_process_needs_no_split():
    plan = planned("3x24GB", global_batch=32, pins={"sharding": "none"})
    assert plan.config.micro_batch * plan.config.accumulation == 32


@pytest.mark.parametrize("pins", [{"micro_batch": 5}, {"accumulation": 7}, {"micro_batch": 4, "accumulation": 2}])
def test_a_pinned_split_that_cannot_give_the_global_batch_is_an_error_too(pins):
    """32 on two ranks is 16 each: neither 5 nor 7 divides that, and 4 x 2 is 8."""
    with pytest.raises(InputError):
        planned("2x24GB", global_batch=32, pins=pins)


def test_a_pinned_micro_batch_may_be_larger_than_any_the_search_would_try():
    plan = planned("1xH200", "Qwen2.5-0.5B", global_batch=128, seq_len=128, pins={"micro_batch": 128})
    assert plan.config is not None
    assert plan.config.micro_batch == 128


@pytest.mark.parametrize(
    ("pins", "error"), [({"optimizer": "adamx"}, UnknownNameError), ({"lora_targets": "nowhere"}, InputError)]
)
def test_pins_that_name_nothing_are_errors(pins, error):
    with pytest.raises(error):
        planned(pins=pins)


def test_alternatives_are_other_kinds_that_fit():
    plan = planned("8x80GB")
    kinds = [kind(plan.config), *(kind(one.config) for one in plan.alternatives)]
    assert 0 < len(plan.alternatives) <= ALTERNATIVES
    assert len(set(kinds)) == len(kinds)
    assert all(one.estimate.fits for one in plan.alternatives)


def test_alternatives_that_are_worse_in_every_respect_come_last():
    plan = planned("8x80GB")

    def dominated(one):
        slower = one.estimate.tokens_per_second <= plan.estimate.tokens_per_second
        return slower and one.estimate.needed_bytes >= plan.estimate.needed_bytes

    order = [dominated(one) for one in plan.alternatives if one.config.method == plan.config.method]
    assert order == sorted(order)


def with_figures(speed, needed, **fields):
    candidate = estimated(**fields)
    return replace(candidate, estimate=replace(candidate.estimate, tokens_per_second=speed, needed_bytes=needed))


FAST_LARGE = with_figures(1000.0, 20, sharding="ddp")
NEAR_EQUAL_BUT_SHARDED = with_figures(1000.0 * (1 + NEAR_EQUAL / 2), 10, sharding="zero3")
SLOW_SMALL = with_figures(500.0, 5, sharding="zero3")


def test_among_near_equals_in_speed_the_simpler_wins():
    assert rank([NEAR_EQUAL_BUT_SHARDED, SLOW_SMALL, FAST_LARGE], request())[0] is FAST_LARGE


def test_machinery_that_may_be_a_little_faster_is_not_worth_it():
    faster = with_figures(1000.0 * (1 + 0.9 * WORTH_MACHINERY), 10, sharding="zero3")
    assert rank([FAST_LARGE, faster], request())[0] is FAST_LARGE


def test_a_clearly_faster_one_wins_however_it_shards():
    faster = with_figures(1200.0, 30, sharding="zero3")
    assert rank([FAST_LARGE, faster], request())[0] is faster


def test_among_equally_simple_near_equals_the_smaller_wins():
    smaller = with_figures(1000.0 * (1 - SAME_SPEED / 2), 15, sharding="ddp")
    assert rank([FAST_LARGE, smaller], request())[0] is smaller


@pytest.mark.parametrize("objective", ["memory", "headroom"])
def test_the_objective_may_be_memory(objective):
    ranked = rank([FAST_LARGE, NEAR_EQUAL_BUT_SHARDED, SLOW_SMALL], request(objective=objective))
    assert [one.estimate.needed_bytes for one in ranked] == [5, 10, 20]


def test_a_plan_for_memory_needs_no_more_than_one_for_speed():
    memory, speed = (planned("8x80GB", objective=objective) for objective in ("memory", "throughput"))
    assert memory.estimate.needed_bytes < speed.estimate.needed_bytes
    assert memory.estimate.tokens_per_second < speed.estimate.tokens_per_second


def test_ranking_loses_nothing():
    everything = [FAST_LARGE, NEAR_EQUAL_BUT_SHARDED, SLOW_SMALL]
    assert len(rank(everything, request())) == 3


def test_a_candidate_that_a_rule_rejects_is_not_estimated():
    config = estimated(sharding="hsdp").config
    candidate = examine(config, request(), load_model("Qwen-7B"), cluster("2x24GB"))
    assert candidate.estimate is None
    assert candidate.rejection.rule == "hsdp-needs-nodes"


def test_a_candidate_without_memory_keeps_its_estimate():
    candidate = examine(estimated("1x8GB").config, request("1x8GB"), load_model("Qwen-7B"), cluster("1x8GB"))
    assert candidate.rejection.rule == "memory"
    assert not candidate.estimate.fits


def test_machinery_must_be_clearly_faster_to_be_chosen():
    found = findings("8x80GB")
    fastest = max(one.estimate.tokens_per_second for one in found.best_tier.fitting)
    assert planned("8x80GB").estimate.tokens_per_second >= (1 - WORTH_MACHINERY) * (1 - SAME_SPEED) * fastest


def test_what_the_fit_puts_just_beyond_the_card_is_chosen_where_the_allocator_lets_it():
    """Two cards of 12 GB, QLoRA of 7B: micro-batch 8 ran there (benchmarks/data/regret.jsonl)."""
    asked = {"method": "qlora", "seq_len": 1024}
    found = findings("2xH200:12GB", "Qwen2.5-7B", **asked)
    plan = planned("2xH200:12GB", "Qwen2.5-7B", **asked)
    assert plan.config in [one.config for looked in found.tiers for one in looked.near]
    assert plan.estimate.fits
    assert plan.config not in [group.config for group in plan.rejections]


def test_offload_that_is_a_little_faster_by_the_estimate_is_not_chosen_where_nothing_forces_it():
    assert planned("1xH100:24GB", "Qwen2.5-7B", seq_len=1024).config.offload == "none"


def test_a_search_is_the_same_each_time():
    first, second = planned(), planned()
    assert replace(first, search=second.search) == second


def test_larger_micro_batches_of_what_does_not_fit_are_decided_without_an_estimate():
    found = findings("1x8GB")
    by_family = {}
    for group in found.rejected:
        config = group.config
        key = (*kind(config), config.kernels, config.lora_rank, config.lora_targets, config.accumulation > 1)
        by_family.setdefault(key, []).append(group)
    assert all(len(groups) == 1 for groups in by_family.values())
    assert found.estimated < found.looked_at


def test_weights_far_too_large_need_no_estimate():
    found = findings("1x8GB", "Llama-3.1-70B")
    alone = [group for group in found.rejected if "alone are too large" in group.rejection.reason]
    assert alone
    for group in alone:
        told = estimate(group.config, load_model("Llama-3.1-70B"), cluster("1x8GB"))
        assert told.needed_bytes > group.rejection.needed_bytes > group.rejection.available_bytes


def test_a_package_that_is_missing_rejects_what_needs_it():
    plan = planned("1x24GB", "Qwen2.5-0.5B", missing_packages=("liger-kernel", "bitsandbytes"))
    assert plan.config.kernels == "none"
    rejected = {(group.rejection.rule, group.rejection.hint) for group in plan.rejections}
    assert ("missing-package", "pip install liger-kernel") in rejected


def test_the_highest_rank_is_one_that_costs_little_speed():
    plain, highest = (planned("1xRTX4090", "Qwen2.5-1.5B", highest_rank=highest) for highest in (False, True))
    assert plain.config.lora_rank == 16
    assert highest.config.lora_rank > 16
    assert highest.config.lora_alpha == 2 * highest.config.lora_rank
    assert highest.estimate.tokens_per_second >= (1 - RANK_MAY_COST) * plain.estimate.tokens_per_second
    assert highest.estimate.fits


def test_where_only_a_small_rank_fits_the_highest_is_that():
    assert planned("1xRTX4090:8250MB", highest_rank=True).config.lora_rank == 8


def test_the_front_of_speed_and_memory_rises_in_both():
    plan = planned("2xA6000")
    needs = [one.needed_bytes for one in plan.pareto]
    speeds = [one.tokens_per_second for one in plan.pareto]
    assert len(needs) > 2
    assert needs == sorted(needs)
    assert speeds == sorted(speeds)
    for one in plan.alternatives:
        told = one.estimate
        assert any(
            need <= told.needed_bytes and speed >= told.tokens_per_second
            for need, speed in zip(needs, speeds, strict=True)
        )
