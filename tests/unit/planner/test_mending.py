from functools import cache

import pytest
from plans import cluster

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.mending import MOST_CHANGES, MOST_FIXES, mended
from ftplan.planner.rules import first_rejection
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig
from ftplan.units import GB

MARGIN = 0.03
SHORT = {"micro_batch": 4, "accumulation": 4, "padding": True, "weights_dtype": "bf16"}
CASES = [
    ("1xRTX4090", "Qwen2.5-7B", {"seq_len": 2048, "gradient_checkpointing": False, **SHORT}),
    ("2xRTX4090", "Qwen2.5-1.5B", {"method": "full", "sharding": "ddp", "weights_dtype": "fp32", "seq_len": 512}),
    ("1xT4", "Qwen2.5-0.5B", {"seq_len": 512}),
]
every = pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{gpus}-{model}" for gpus, model, _ in CASES])


@cache
def answers(case):
    gpus, model, fields = CASES[case]
    config = RunConfig(model=model, **fields)
    return config, mended(config, load_model(model), cluster(gpus), margin=MARGIN)


@every
def test_something_is_found_and_not_too_much(case):
    _, found = answers(case)
    assert 1 <= len(found) <= MOST_FIXES
    assert len({one.config for one in found}) == len(found)


@every
def test_every_answer_fits_by_the_simulated_allocator_and_breaks_no_rule(case):
    gpus, model, _ = CASES[case]
    found = answers(case)[1]
    for one in found:
        assert first_rejection(one.config, load_model(model), cluster(gpus)) is None
        assert one.estimate.fits
    one = found[-1]
    assert one.estimate == estimate(one.config, load_model(model), cluster(gpus), margin=MARGIN, replays=True)


@every
def test_every_answer_keeps_the_global_batch(case):
    config, found = answers(case)
    for one in found:
        assert one.config.micro_batch * one.config.accumulation == config.micro_batch * config.accumulation


@every
def test_answers_have_the_same_number_of_moves_and_no_fewer_would_do(case):
    gpus, model, _ = CASES[case]
    config, found = answers(case)
    (size,) = {len(one.moves) for one in found}
    assert size <= MOST_CHANGES + 1
    before = estimate(config, load_model(model), cluster(gpus), margin=MARGIN, replays=True)
    assert not before.fits or first_rejection(config, load_model(model), cluster(gpus)) is not None


@every
def test_no_two_moves_of_an_answer_are_about_the_same(case):
    for one in answers(case)[1]:
        assert len({move.subject for move in one.moves}) == len(one.moves)


@every
def test_answers_that_give_up_as_much_come_fastest_first(case):
    _, found = answers(case)
    keeping = [one.estimate.tokens_per_second for one in found if one.keeps_result]
    assert keeping == sorted(keeping, reverse=True)
    assert [one.keeps_result for one in found] == sorted((one.keeps_result for one in found), reverse=True)


def test_what_keeps_the_result_is_preferred_to_what_does_not():
    _, found = answers(0)
    assert all(one.keeps_result for one in found)


def test_where_nothing_keeps_it_the_method_goes_last():
    config = RunConfig(model="Qwen2.5-7B", seq_len=512)
    found = mended(config, load_model("Qwen2.5-7B"), cluster("1x8GB"), margin=MARGIN, allowed=no_machinery)
    assert found
    assert not any(one.keeps_result for one in found)
    assert all(one.config.method == "qlora" for one in found)


def no_machinery(config):
    return config.sharding == "none" and config.offload == "none"


def test_only_what_is_allowed_is_proposed():
    gpus, model, fields = CASES[0]
    config = RunConfig(model=model, **fields)
    found = mended(config, load_model(model), cluster(gpus), margin=MARGIN, allowed=lambda new: new.kernels == "none")
    assert found
    assert {one.config.kernels for one in found} == {"none"}
    assert mended(config, load_model(model), cluster(gpus), margin=MARGIN, allowed=lambda _: False) == ()


def test_what_cannot_fit_has_no_answer():
    config = RunConfig(model="Llama-3.1-70B", method="full", weights_dtype="bf16")
    there = resolve_inventory(parse_inventory("1x8GB", host_memory_bytes=64 * GB))
    assert mended(config, load_model("Llama-3.1-70B"), there, margin=MARGIN) == ()


def test_where_ram_is_only_assumed_a_host_with_more_is_an_answer():
    config = RunConfig(model="Llama-3.1-8B", method="full", weights_dtype="bf16", seq_len=512)
    found = mended(config, load_model("Llama-3.1-8B"), cluster("1x24GB"), margin=MARGIN, allowed=keeps_method)
    assert found
    assert not any(one.estimate.host.fits for one in found)
    assert all(rank.fits for one in found for rank in one.estimate.ranks)


def keeps_method(config):
    return config.method == "full" and "8bit" not in config.optimizer


def test_cards_without_bf16_get_fp16_in_every_answer():
    config, found = answers(2)
    assert config.precision == "bf16"
    assert {(one.config.precision, one.config.weights_dtype) for one in found} == {("fp16", "fp16")}
    assert [len(one.moves) for one in found] == [1]


def test_weights_that_train_whole_are_loaded_in_fp32_there():
    config = RunConfig(model="Qwen2.5-0.5B", method="full", seq_len=512)
    (one,) = mended(config, load_model("Qwen2.5-0.5B"), cluster("1xRTX2080Ti"), margin=MARGIN)[:1]
    assert (one.config.precision, one.config.weights_dtype) == ("fp16", "fp32")


def test_batches_of_one_are_not_padded():
    for case in range(len(CASES)):
        for one in answers(case)[1]:
            assert one.config.padding == (one.config.micro_batch > 1) or not CASES[case][2].get("padding")
