"""Limits: what is told fits when it is estimated anew, and clearly more has no plan."""

import pytest
from plans import cluster, request

from ftplan.errors import BatchError, DoesNotFitError, InputError
from ftplan.estimators.analytic import estimate
from ftplan.planner.limits import FIRST_TIERS, limits, longest_sequence
from ftplan.planner.search import plan as search_plan
from ftplan.profiles.models import load_model
from ftplan.workflows import inverse

SMALL = "Qwen2.5-0.5B"
ONE_TIER = {"lora_rank": 16, "lora_targets": "all-linear", "offload": "none"}
"""Pins that leave a method one tier: a plan may go to lower ones, which go farther."""

FEWEST = {"offload": "none", "kernels": "none", "gradient_checkpointing": True}
"""Pins that leave few kinds of configurations to look at."""


def limits_of(gpus, model=SMALL, **fields):
    found = limits(request(gpus, model, **fields), load_model(model), cluster(gpus))
    return found, {limit.field: limit for limit in found.limits}


def has_plan(gpus, model, **fields):
    return search_plan(request(gpus, model, **fields), load_model(model), cluster(gpus)).config is not None


CASES = [
    ("1x4GB", SMALL, {"method": "lora", "seq_len": 512}),
    ("2x4GB", SMALL, {"method": "qlora", "seq_len": 512}),
    ("1xRTX4090", "Qwen2.5-7B", {"method": "qlora", "seq_len": 512}),
    ("1x4GB", "gpt2", {"method": "lora", "seq_len": 256}),
]


@pytest.mark.parametrize(("gpus", "model", "fields"), CASES)
def test_what_is_told_fits_anew_and_clearly_more_does_not(gpus, model, fields):
    ranks = cluster(gpus).world_size
    _, told = limits_of(gpus, model, pins=ONE_TIER, **fields)
    assert list(told) == ["seq_len", "micro_batch"]
    for limit in told.values():
        config = limit.candidate.config
        assert getattr(config, limit.field) == limit.value
        again = estimate(config, load_model(model), cluster(gpus), margin=0.03, replays=True)
        assert again.fits
        assert again.needed_bytes <= 0.97 * again.capacity_bytes
    length, micro_batch = told["seq_len"].value, told["micro_batch"].value
    if model != "gpt2":
        assert length % 64 == 0
        assert not has_plan(gpus, model, pins=ONE_TIER, **{**fields, "seq_len": int(1.15 * length)})
    more = int(1.15 * micro_batch) + 1
    pins = {**ONE_TIER, "micro_batch": more}
    assert not has_plan(gpus, model, pins=pins, global_batch=more * ranks, **fields)


def test_the_rest_of_a_limit_is_as_it_was_asked_for():
    _, told = limits_of("2x4GB", "gpt2", global_batch=512, method="lora", seq_len=512, pins=FEWEST)
    longest, batch, rank = (told[name].candidate.config for name in ("seq_len", "micro_batch", "lora_rank"))
    assert longest.micro_batch * longest.accumulation * 2 == 512
    assert (batch.seq_len, batch.accumulation) == (512, 1)
    assert (rank.seq_len, rank.micro_batch * rank.accumulation * 2) == (512, 512)


def test_the_highest_rank_fits_and_a_higher_one_does_not():
    gpus, model = "1xRTX4090:10GB", "Qwen2.5-7B"
    fields = {"method": "qlora", "seq_len": 512, "pins": {"offload": "none", "lora_targets": "all-linear"}}
    _, told = limits_of(gpus, model, **fields)
    limit = told["lora_rank"]
    assert limit.value % 8 == 0
    assert limit.value < load_model(model).hidden_size
    assert estimate(limit.candidate.config, load_model(model), cluster(gpus), replays=True).fits
    pins = {**fields["pins"], "lora_rank": int(1.15 * limit.value)}
    assert not has_plan(gpus, model, **{**fields, "pins": pins})


def test_no_rank_is_told_beyond_the_hidden_size():
    _, told = limits_of("1x80GB", "gpt2", method="lora", seq_len=1024)
    assert told["lora_rank"].value == load_model("gpt2").hidden_size


def test_positions_that_are_learned_end_the_sequence():
    _, told = limits_of("1x80GB", "gpt2", method="lora")
    assert told["seq_len"].value == load_model("gpt2").max_positions == 1024
    assert told["seq_len"].positions is None


def test_rotary_positions_do_not_but_are_told():
    _, told = limits_of("1xRTX4090", method="lora", seq_len=512, pins={"lora_rank": 16, **FEWEST})
    assert told["seq_len"].value > load_model(SMALL).max_positions == told["seq_len"].positions


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_more_memory_never_lowers_a_limit(method):
    previous = {}
    for gigabytes in (6, 12):
        _, told = limits_of(f"1xRTX4090:{gigabytes}GB", "gpt2", method=method, seq_len=512, pins=FEWEST)
        values = {name: limit.value for name, limit in told.items()}
        assert all(values[name] >= value for name, value in previous.items())
        previous = values


def test_what_is_pinned_has_no_limit_of_its_own():
    def fields(method, **pins):
        return list(limits_of("1x4GB", "gpt2", method=method, seq_len=512, pins={**FEWEST, **pins})[1])

    assert fields("lora") == ["seq_len", "micro_batch", "lora_rank"]
    assert fields("lora", lora_rank=8) == ["seq_len", "micro_batch"]
    assert fields("lora", micro_batch=2) == fields("lora", accumulation=2) == ["seq_len", "lora_rank"]
    assert fields("full") == ["seq_len", "micro_batch"]


def test_a_pinned_accumulation_of_a_large_batch_is_kept():
    _, told = limits_of("1x24GB", "gpt2", method="lora", global_batch=3200, pins={"accumulation": 200}, seq_len=128)
    for limit in told.values():
        assert limit.value > 0
        assert (limit.candidate.config.micro_batch, limit.candidate.config.accumulation) == (16, 200)


def test_what_does_not_fit_at_the_length_asked_for_has_no_value():
    """The tier is one that fits at the shortest length; at the request's own, not even one sample does."""
    _, told = limits_of("1x4GB", method="lora", seq_len=100_000, pins=ONE_TIER)
    assert told["seq_len"].value > 0
    assert (told["micro_batch"].value, told["micro_batch"].candidate) == (0, None)


@pytest.mark.parametrize("method", ["auto", "lora", "qlora", "full"])
def test_nothing_fits_at_any_length(method):
    with pytest.raises(DoesNotFitError, match="whatever the sequence length") as caught:
        limits_of("1x1GB", "Qwen2.5-7B", method=method)
    assert caught.value.exit_code == 1


def test_a_batch_that_does_not_split_is_no_matter_of_memory():
    with pytest.raises(BatchError):
        limits_of("2x24GB", global_batch=7)
    with pytest.raises(InputError, match="micro_batch 5"):
        limits_of("1x24GB", pins={"micro_batch": 5})


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_first_tier_is_not_told_as_a_way_out(method):
    """That 16-bit LoRA does not fit is no reason for limits of QLoRA that were asked for."""
    found, _ = limits_of("1x24GB", "gpt2", method=method)
    assert found.because == FIRST_TIERS[method]
    assert "does not fit" not in found.because


def test_a_lower_tier_says_why():
    found, _ = limits_of("1xRTX4090:8500MB", method="full", seq_len=128, pins={**FEWEST, "sharding": "none"})
    assert found.because.startswith("8-bit optimizer states, because 32-bit ones do not fit")


@pytest.mark.parametrize(("gpus", "model"), [("1x4GB", SMALL), ("1x8GB", "Qwen2.5-7B")])
def test_the_longest_sequence_looks_at_every_tier(gpus, model):
    asked = request(gpus, model, seq_len=1_000_000)
    longest = longest_sequence(asked, load_model(model), cluster(gpus))
    best_tier = limits_of(gpus, model)[1]["seq_len"].value
    assert longest > best_tier
    assert has_plan(gpus, model, seq_len=longest)
    assert not has_plan(gpus, model, seq_len=int(1.1 * longest))


@pytest.mark.parametrize("length", [1, 50, 64, 100, 1000])
def test_the_longest_sequence_is_no_longer_than_the_one_asked_for(length):
    longest = longest_sequence(request("1x8GB", "gpt2", seq_len=length), load_model("gpt2"), cluster("1x8GB"))
    assert 0.5 * length <= longest <= length


def test_no_sequence_at_all():
    asked = request("1x1GB", "Qwen2.5-7B")
    assert longest_sequence(asked, load_model("Qwen2.5-7B"), cluster("1x1GB")) is None


class TestReach:
    def test_auto_tells_each_method_and_which_do_not_fit(self):
        found = inverse.reach(request("1xRTX4090:9GB", "Qwen2.5-7B", seq_len=128, pins={"offload": "none"}))
        assert [one.method for one in found.limits] == ["qlora"]
        assert found.refused == ("lora", "full")

    def test_one_method_is_told_alone(self):
        found = inverse.reach(request("1x8GB", "gpt2", method="lora"))
        assert [one.method for one in found.limits] == ["lora"]
        assert found.refused == ()

    def test_nothing_fits(self):
        with pytest.raises(DoesNotFitError):
            inverse.reach(request("1x1GB", "Qwen2.5-7B"))

    def test_a_pin_that_is_no_value_is_an_input_error(self):
        with pytest.raises(InputError, match="sharding"):
            inverse.reach(request("1x8GB", "gpt2", pins={"sharding": "zero4"}))
