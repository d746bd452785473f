from functools import cache

import pytest
from plans import cluster

from ftplan.estimators.analytic import estimate
from ftplan.planner.rules import first_rejection
from ftplan.planner.waste import WORTH_LESS_MACHINERY, WORTH_TELLING, wasted
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig

MARGIN = 0.03
CASES = {
    "offload": ("2xA6000", "Qwen2.5-0.5B", {"sharding": "zero2", "offload": "optimizer", "accumulation": 2}),
    "fsdp": ("2xA6000", "Qwen2.5-0.5B", {"sharding": "fsdp2", "accumulation": 2, "sync_each_batch": True}),
    "small batches": ("1xA100-80GB", "Qwen2.5-0.5B", {"micro_batch": 1, "accumulation": 16}),
    "full card": ("1xRTX4090", "Qwen2.5-7B", {"seq_len": 2048, "accumulation": 8}),
}
every = pytest.mark.parametrize("name", CASES)


@cache
def found_in(name):
    gpus, model, fields = CASES[name]
    config = RunConfig(**{"model": model, "seq_len": 512, **fields})
    told = estimate(config, load_model(model), cluster(gpus), margin=MARGIN, replays=True)
    assert told.fits
    return config, told, wasted(config, told, load_model(model), cluster(gpus), margin=MARGIN)


@every
def test_nothing_is_proposed_that_does_not_fit(name):
    gpus, model, _ = CASES[name]
    for one in found_in(name)[2]:
        assert one.estimate.fits
        assert first_rejection(one.config, load_model(model), cluster(gpus)) is None


@every
def test_nothing_is_proposed_that_is_slower(name):
    _, told, found = found_in(name)
    for one in found:
        least = WORTH_LESS_MACHINERY if one.topic in ("sharding", "offload") else WORTH_TELLING
        assert one.estimate.tokens_per_second / told.tokens_per_second >= 1 + least - 0.01
        assert one.speed_ratio >= 1 + least


@every
def test_the_global_batch_and_what_is_trained_stay(name):
    config, _, found = found_in(name)
    for one in found:
        assert one.config.micro_batch * one.config.accumulation == config.micro_batch * config.accumulation
        assert (one.config.method, one.config.lora_rank, one.config.seq_len) == (
            config.method,
            config.lora_rank,
            config.seq_len,
        )


@every
def test_each_topic_is_told_once_the_most_gained_first(name):
    found = found_in(name)[2]
    topics = [one.topic for one in found]
    assert len(set(topics)) == len(topics)
    ratios = [one.speed_ratio for one in found]
    assert ratios == sorted(ratios, reverse=True)


def test_offload_without_need_is_told():
    assert {one.topic for one in found_in("offload")[2]} >= {"offload", "sharding"}


def test_sharding_without_need_is_told():
    (one,) = [one for one in found_in("fsdp")[2] if one.topic == "sharding"]
    assert one.config.sharding == "ddp"
    assert one.config.sync_each_batch is False


def test_small_micro_batches_on_a_large_card_are_told():
    (one,) = [one for one in found_in("small batches")[2] if one.topic == "micro-batch"]
    assert one.config.micro_batch > 1
    assert one.config.padding is True


def test_a_card_that_is_full_wastes_nothing_that_needs_memory():
    assert "checkpointing" not in [one.topic for one in found_in("full card")[2]]


def test_only_what_is_allowed_is_proposed():
    config, told, _ = found_in("offload")
    model, cards = load_model(config.model), cluster("2xA6000")
    assert wasted(config, told, model, cards, margin=MARGIN, allowed=lambda _: False) == ()
    found = wasted(config, told, model, cards, margin=MARGIN, allowed=lambda new: new.sharding != "ddp")
    assert all(one.config.sharding != "ddp" for one in found)
