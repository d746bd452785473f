import pytest
from plans import planned

from ftplan.estimators.analytic import estimate
from ftplan.planner.advice import PACKING_PAYS, advise, scaled_learning_rates
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model
from ftplan.results import Candidate
from ftplan.spec import FormerBatch, PlanRequest, RunConfig
from ftplan.workflows import planning

MODEL = "Qwen2.5-0.5B"


def plan(gpus, **fields):
    return planning.plan(planning.plan_request(gpus, model=MODEL, seq_len=512, **fields))


def advice(chosen, topic):
    (only,) = [each for each in chosen.advice if each.topic == topic]
    return only


def topics(chosen):
    return [each.topic for each in chosen.advice]


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_optimizers_that_normalise_scale_by_the_square_root(optimizer):
    assert scaled_learning_rates(1e-4, 64, 16, optimizer) == ("square root", {"linear": 4e-4, "square root": 2e-4})


def test_plain_gradients_scale_linearly():
    rule, rates = scaled_learning_rates(0.1, 8, 32, "sgd")
    assert rule == "linear"
    assert rates == pytest.approx({"linear": 0.025, "square root": 0.05})


def test_the_same_batch_keeps_the_learning_rate():
    assert set(scaled_learning_rates(3e-4, 32, 32, "sgd")[1].values()) == {3e-4}


MOVED = {"global_batch": 64, "was": {"samples": 16, "learning_rate": 2e-4}}


@pytest.mark.parametrize(
    ("optimizer", "rule", "other"),
    [("adamw_torch", "square root scaling", "linear scaling"), ("sgd", "linear scaling", "square root scaling")],
)
def test_another_batch_has_another_learning_rate_and_both_rules_are_told(optimizer, rule, other):
    told = advice(plan("1xRTX4090", pins={"optimizer": optimizer}, **MOVED), "learning_rate")
    assert told.text.index(rule) < told.text.index(other)
    assert "from 16 to 64 samples" in told.text
    assert {"0.0008", "0.0004"} <= set(told.text.replace(",", " ").replace(";", " ").split())
    assert told.figures == pytest.approx(
        {
            "samples_before": 16,
            "samples": 64,
            "learning_rate_before": 2e-4,
            "learning_rate_linear": 8e-4,
            "learning_rate_square_root": 4e-4,
        }
    )


def test_without_a_learning_rate_the_factors_are_told():
    told = advice(plan("1xRTX4090", global_batch=64, was={"samples": 16}), "learning_rate")
    assert "gives times 2, " in told.text
    assert told.text.endswith("would give times 4")
    assert told.figures == {"samples_before": 16, "samples": 64, "factor_linear": 4.0, "factor_square_root": 2.0}


def test_without_a_former_batch_nothing_is_said_of_it():
    assert topics(plan("1xRTX4090")) == []
    assert topics(plan("1xRTX4090", was={"samples": 32})) == []


WAS_FOUR_BY_EIGHT = {"micro_batch": 4, "accumulation": 8}


def test_a_configuration_that_moves_to_more_cards_keeps_its_batch_with_less_accumulation():
    chosen = plan("4xRTX4090", pins=WAS_FOUR_BY_EIGHT, was={"gpus": 1, "learning_rate": 1e-4})
    assert (chosen.config.micro_batch, chosen.config.accumulation, chosen.global_batch) == (4, 2, 32)
    assert topics(chosen) == ["batch"]
    told = advice(chosen, "batch")
    assert "would make a step of 128 samples on 4 devices, 4 times the 32 on 1: fewer steps an epoch" in told.text
    assert told.text.endswith("micro-batch 4 x 2 makes 32")
    assert told.figures == {
        "samples_before": 32,
        "samples_unchanged": 128,
        "samples": 32,
        "gpus_before": 1,
        "gpus": 4,
        "accumulation_before": 8,
        "accumulation": 2,
    }


def test_a_configuration_that_moves_to_fewer_cards_would_make_more_steps():
    chosen = plan("2xRTX4090", pins=WAS_FOUR_BY_EIGHT, was={"gpus": 6})
    told = advice(chosen, "batch")
    assert "64 samples on 2 devices, 0.333 times the 192 on 6: more steps an epoch" in told.text
    assert (chosen.config.micro_batch, chosen.config.accumulation) == (4, 24)


def test_a_global_batch_that_is_given_changes_the_learning_rate_too():
    chosen = plan("4xRTX4090", global_batch=128, pins=WAS_FOUR_BY_EIGHT, was={"gpus": 1, "learning_rate": 1e-4})
    assert topics(chosen) == ["batch", "learning_rate"]
    assert advice(chosen, "learning_rate").figures["learning_rate_square_root"] == pytest.approx(2e-4)
    assert chosen.config.micro_batch * chosen.config.accumulation * 4 == 128


def test_on_as_many_cards_as_before_nothing_moved():
    assert topics(plan("2xRTX4090", pins=WAS_FOUR_BY_EIGHT, was={"gpus": 2, "learning_rate": 1e-4})) == []


def test_one_process_on_several_cards_counts_as_one():
    pins = {**WAS_FOUR_BY_EIGHT, "sharding": "none"}
    chosen = plan("2xRTX4090", pins=pins, was={"gpus": 1})
    assert (chosen.config.micro_batch, chosen.config.accumulation) == (4, 8)
    assert topics(chosen) == []


def test_unequal_cards_are_told_what_is_idle():
    chosen = planned("1xA100-80GB+1xRTX3090", MODEL)
    told = advice(chosen, "unequal_cards")
    large, small = (rank.capacity_bytes for rank in chosen.estimate.ranks)
    assert told.figures["free_bytes"] > large - small
    assert f"{told.figures['free_bytes'] / 2**30:.1f} GiB" in told.text
    assert 0.5 < told.figures["idle_part"] < 1
    assert f"{told.figures['idle_part']:.0%} of the cards' arithmetic is idle" in told.text


@pytest.mark.parametrize("gpus", ["2xRTX3090", "1xRTX3090"])
def test_equal_cards_leave_nothing_idle(gpus):
    assert topics(planned(gpus, MODEL)) == []


def test_equal_cards_of_which_one_is_half_taken_are_unequal():
    assert topics(planned("1xRTX4090+1xRTX4090:12GB", MODEL)) == ["unequal_cards"]


def test_a_plan_that_leaves_the_second_card_alone_does_not_call_it_idle():
    assert topics(planned("1xA100-80GB+1xRTX3090", MODEL, pins={"sharding": "none"})) == []


SHORT = {"samples": 10_000, "mean_tokens": 64}


def test_short_samples_are_worth_packing():
    chosen = plan("1xRTX4090", training=SHORT, pins={"micro_batch": 8})
    told = advice(chosen, "packing")
    assert told.text.startswith(f"--packing would take {told.figures['time_ratio']:.0%} of the time")
    assert told.figures["samples_per_row"] == 8
    assert told.figures["time_ratio"] <= PACKING_PAYS
    assert told.figures["seconds"] == pytest.approx(
        told.figures["time_ratio"] * chosen.estimate.training.seconds, rel=1e-9
    )


def test_packing_takes_the_time_that_was_told():
    told = advice(plan("1xRTX4090", training=SHORT, pins={"micro_batch": 8}), "packing")
    packed = plan("1xRTX4090", training=SHORT, pins={"micro_batch": 8, "packing": True})
    assert packed.estimate.training.seconds == pytest.approx(told.figures["seconds"], rel=0.1)


@pytest.mark.parametrize(
    ("training", "pins"),
    [
        ({"samples": 10_000}, {}),
        ({"samples": 10_000, "mean_tokens": 500}, {"micro_batch": 8}),
        (SHORT, {"packing": True}),
        (SHORT, {"packing": False}),
    ],
    ids=["unknown lengths", "nearly full rows", "packed already", "refused"],
)
def test_packing_is_not_proposed(training, pins):
    assert topics(plan("1xRTX4090", training=training, pins=pins)) == []


@pytest.mark.parametrize(
    ("samples", "told"),
    [(32, "makes a step of 32 samples on 4 devices, 4 times the 8 on 1"), (8, "would make a step of 32 samples")],
)
def test_a_batch_that_was_kept_is_told_as_what_it_is_and_another_as_what_it_would_be(samples, told):
    was = {"gpus": 1, "samples": 8, "micro_batch": 1, "accumulation": 8}
    config = RunConfig(model=MODEL, seq_len=512, accumulation=samples // 4, sharding="ddp")
    asked = PlanRequest(
        model=MODEL, inventory=parse_inventory("4xRTX4090"), global_batch=samples, seq_len=512, was=FormerBatch(**was)
    )
    there = resolve_inventory(asked.inventory)
    candidate = Candidate(config, estimate(config, load_model(MODEL), there))
    (found,) = [each for each in advise(candidate, asked, load_model(MODEL), there) if each.topic == "batch"]
    assert told in found.text
    assert ("micro-batch 1 x 2 makes 8" in found.text) == (samples == 8)
