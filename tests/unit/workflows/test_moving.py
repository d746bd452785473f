"""Requests by what is known of a configuration's past, and plans that take less than was given."""

import importlib.util

import pytest

from ftplan.errors import BatchError, InputError
from ftplan.profiles.gpus import load_gpu
from ftplan.workflows import moving, planning

SMALL = "Qwen2.5-0.5B"


def ask(gpus="1x24GB", model=SMALL, **fields):
    return planning.plan_request(gpus, model=model, **fields)


def plan(gpus="1x24GB", model=SMALL, **fields):
    return planning.plan(ask(gpus, model, **fields))


def advice(chosen, topic):
    (only,) = [each for each in chosen.advice if each.topic == topic]
    return only


def because(chosen, field):
    (only,) = [reason.because for reason in chosen.reasons if reason.field == field]
    return only


class TestRanks:
    def test_a_number_is_a_pin_beside_the_others(self):
        request = ask(lora_rank="8", pins={"sharding": "none"})
        assert request.pins == {"sharding": "none", "lora_rank": 8}
        assert not request.highest_rank

    @pytest.mark.parametrize("text", ["auto", " AUTO "])
    def test_auto_leaves_it_to_the_planner(self, text):
        request = ask(lora_rank=text)
        assert request.pins == {}
        assert request.highest_rank

    def test_the_planner_then_takes_the_highest_that_costs_little_speed(self):
        chosen = plan("1xRTX4090", lora_rank="auto", seq_len=512)
        assert chosen.config.lora_rank > 16
        assert "lora_rank" in {reason.field for reason in chosen.reasons}

    @pytest.mark.parametrize("text", ["x", "", "0", "-8", "1e3", "8.0"])
    def test_what_is_no_rank_is_refused(self, text):
        with pytest.raises(InputError, match="is no rank") as caught:
            ask(lora_rank=text)
        assert (caught.value.exit_code, caught.value.field) == (2, "lora_rank")


class TestLengthsThatMayBeCut:
    def test_a_length_and_a_limit_exclude_each_other(self):
        with pytest.raises(InputError, match="exclude each other") as caught:
            ask(max_seq=4096, seq_len=2048)
        assert (caught.value.exit_code, caught.value.field) == (2, "max_seq")

    @pytest.mark.parametrize("length", [0, -1])
    def test_a_limit_has_to_be_one(self, length):
        with pytest.raises(InputError, match="seq_len"):
            ask(max_seq=length)

    def test_what_fits_is_not_cut(self):
        chosen = plan(max_seq=777)
        assert chosen.config.seq_len == chosen.request.seq_len == 777

    @pytest.mark.parametrize(
        ("gpus", "model", "fields"),
        [
            ("1x4GB", SMALL, {}),
            ("1x4GB", SMALL, {"method": "lora"}),
            ("2x4GB", SMALL, {"method": "full"}),
            ("1x8GB", "Qwen2.5-7B", {"method": "qlora", "pins": {"lora_rank": 16, "lora_targets": "all-linear"}}),
            ("1x4GB", SMALL, {"objective": "cost"}),
        ],
    )
    def test_the_cut_is_no_deeper_than_it_must_be(self, gpus, model, fields):
        asked = 1_000_000
        assert plan(gpus, model, seq_len=asked, **fields).config is None
        chosen = plan(gpus, model, max_seq=asked, **fields)
        length = chosen.config.seq_len
        assert 64 <= length < asked
        assert length % 64 == 0
        assert chosen.request.seq_len == length
        assert because(chosen, "seq_len") == "the longest that has a plan, up to what was asked for"
        assert plan(gpus, model, seq_len=length, **fields).config is not None
        assert plan(gpus, model, seq_len=length * 11 // 10, **fields).config is None

    def test_positions_that_are_learned_end_it(self):
        assert plan("1x8GB", "gpt2", max_seq=5000).config.seq_len == 1024

    def test_where_no_length_fits_the_misses_are_those_of_the_length_asked_for(self):
        chosen = plan("1x1GB", "Qwen2.5-7B", max_seq=4096)
        assert chosen.config is None
        assert chosen.request.seq_len == 4096
        assert chosen.rejections


class TestFormerBatches:
    @pytest.mark.parametrize(
        ("was", "pins"),
        [
            ({"learning_rate": 1e-4}, {}),
            ({"gpus": 1}, {}),
            ({"gpus": 1}, {"micro_batch": 4}),
            ({"gpus": 1}, {"accumulation": 4}),
            ({"learning_rate": 1e-4}, {"micro_batch": 4, "accumulation": 4}),
        ],
    )
    def test_too_little_is_known(self, was, pins):
        with pytest.raises(InputError, match="is not known") as caught:
            ask("2x24GB", was=was, pins=pins)
        assert caught.value.exit_code == 2
        assert caught.value.field == ("was_gpus" if "gpus" in was else "was_batch")
        assert "--was-batch" in caught.value.hint

    def test_the_batch_before_is_the_batch_now(self):
        request = ask("2x24GB", was={"gpus": 1}, pins={"micro_batch": 4, "accumulation": 6})
        assert request.global_batch == 24
        assert request.pins == {"micro_batch": 4}
        was = request.was
        assert (was.samples, was.gpus, was.micro_batch, was.accumulation) == (24, 1, 4, 6)

    def test_the_batch_may_be_all_that_is_known(self):
        request = ask("2x24GB", was={"samples": 48})
        assert (request.global_batch, request.was.samples, request.was.gpus) == (48, 48, None)

    def test_another_batch_may_be_asked_for(self):
        request = ask("2x24GB", global_batch=64, was={"samples": 48})
        assert (request.global_batch, request.was.samples) == (64, 48)

    def test_a_batch_that_is_told_in_two_ways_that_differ_is_refused(self):
        pins = {"micro_batch": 4, "accumulation": 2}
        with pytest.raises(InputError, match="made 8 samples, not 24"):
            ask("2x24GB", was={"gpus": 1, "samples": 24}, pins=pins)
        assert ask("2x24GB", was={"gpus": 1, "samples": 8}, pins=pins).global_batch == 8

    def test_a_micro_batch_that_no_longer_divides_is_dropped(self):
        request = ask("4x24GB", was={"gpus": 1}, pins={"micro_batch": 6, "accumulation": 2, "sharding": "ddp"})
        assert request.pins == {"sharding": "ddp"}
        chosen = planning.plan(request)
        assert chosen.config.micro_batch * chosen.config.accumulation * 4 == 12

    def test_one_process_takes_the_whole_batch_on_any_number_of_cards(self):
        pins = {"micro_batch": 32, "accumulation": 1, "sharding": "none"}
        assert ask("2x24GB", was={"gpus": 1}, pins=pins).pins == {"micro_batch": 32, "sharding": "none"}

    def test_a_batch_that_the_new_cards_cannot_split_is_an_error_with_the_nearest(self):
        with pytest.raises(BatchError) as caught:
            plan("2x24GB", was={"gpus": 3}, pins={"micro_batch": 3, "accumulation": 1})
        assert caught.value.nearest == (8, 10)


class TestCost:
    """Two RTX 4090 have no fast link: four of them cost more for each token than they save."""

    def test_cards_that_do_not_pay_are_left_out(self):
        asked = {"method": "full", "global_batch": 8, "seq_len": 512}
        chosen = plan("4xRTX4090", "Qwen2.5-0.5B", objective="cost", **asked)
        assert chosen.request.inventory.text in ("2xRTX4090", "1xRTX4090")
        told = advice(chosen, "cost")
        assert told.figures["cost_ratio 4xRTX4090"] > 1
        assert told.text.startswith(f"a token costs least on {chosen.request.inventory.text}")
        every = plan("4xRTX4090", "Qwen2.5-0.5B", **asked)
        assert planning.cost(every) / planning.cost(chosen) == pytest.approx(told.figures["cost_ratio 4xRTX4090"])

    def test_what_costs_about_the_same_keeps_its_cards(self):
        chosen = plan("4xH100", "Qwen2.5-7B", objective="cost", method="lora")
        ratios = advice(chosen, "cost").figures
        assert chosen.request.inventory.text == "4xH100"
        assert all(ratio > 1 - 0.03 for ratio in ratios.values())
        assert min(ratios.values()) < 1

    def test_a_better_method_comes_before_a_lower_price(self):
        """Two cards of 12 GB hold 16-bit LoRA; one would be cheaper with QLoRA."""
        chosen = plan("2x12GB", "Qwen2.5-7B", objective="cost", seq_len=512)
        one = plan("1x12GB", "Qwen2.5-7B", seq_len=512)
        order = planning.METHOD_ORDER
        assert order.index(chosen.config.method) <= order.index(one.config.method)
        cheaper = [text for text, ratio in advice(chosen, "cost").figures.items() if ratio < 1]
        assert chosen.config.method == one.config.method or cheaper == ["cost_ratio 1x12GB"]

    def test_a_single_card_has_no_parts(self):
        told = advice(plan("1xRTX4090", objective="cost", seq_len=512), "cost")
        assert told.figures == {}

    def test_parts_that_a_pinned_split_does_not_fill_are_passed_over(self):
        pins = {"micro_batch": 4, "accumulation": 2}
        chosen = plan("4xRTX4090", objective="cost", seq_len=512, pins=pins)
        assert chosen.request.inventory.text == "4xRTX4090"
        assert advice(chosen, "cost").figures == {}

    def test_the_price_that_is_given_counts(self):
        request = {"objective": "cost", "seq_len": 512, "training": {"samples": 1000, "price": 2.0}}
        chosen = plan("1xRTX4090", **request)
        hours = chosen.estimate.training.seconds / 3600
        assert chosen.estimate.training.dollars == pytest.approx(2.0 * hours)
        per_second = 2.0 / 3600
        assert planning.cost(chosen) == pytest.approx(per_second / chosen.estimate.tokens_per_second * 1e6)

    def test_cards_without_a_price_count_as_much_as_each_other(self):
        assert load_gpu("24GB").dollars_per_hour is None
        chosen = plan("2x24GB", objective="cost", seq_len=512)
        ranks = len(chosen.estimate.ranks)
        assert planning.cost(chosen) == pytest.approx(ranks / 3600 / chosen.estimate.tokens_per_second * 1e6)

    def test_nothing_that_fits_is_told_of_the_whole_inventory(self):
        chosen = plan("2x1GB", "Qwen2.5-7B", objective="cost")
        assert chosen.config is None
        assert chosen.request.inventory.text == "2x1GB"


class TestUnequalCards:
    def test_the_fast_card_alone_would_do_more(self):
        told = advice(plan("1xA100-80GB+1xRTX3090"), "leave_cards_out")
        ratio = told.figures["1xA100-80GB-SXM"]
        assert ratio > 1
        assert told.text == f"1xA100-80GB-SXM alone would be {ratio - 1:.0%} faster: leave the other cards out"

    def test_cards_that_are_nearly_equal_stay(self):
        chosen = plan("1xRTX3090+1xRTX3090Ti")
        assert [each.topic for each in chosen.advice] == ["unequal_cards"]

    def test_a_pinned_split_that_only_both_can_make_is_no_error(self):
        chosen = plan("1xA100-80GB+1xRTX3090", seq_len=512, pins={"micro_batch": 4, "accumulation": 4})
        assert (chosen.config.micro_batch, chosen.config.accumulation) == (4, 4)


class TestMissingPackages:
    @pytest.fixture
    def installed(self, monkeypatch):
        def only(*modules):
            monkeypatch.setattr(moving, "find_spec", lambda name: object() if name in modules else None)

        return only

    def test_without_torch_nothing_is_known(self, installed):
        installed("deepspeed")
        assert moving.missing_packages() == ()

    def test_what_torch_is_not_beside_is_missing(self, installed):
        installed("torch", "bitsandbytes", "liger_kernel")
        assert moving.missing_packages() == ("deepspeed", "flash-attn")

    def test_only_this_machine_is_looked_at(self, installed):
        installed("torch")
        assert ask("1x24GB").missing_packages == ()
        assert ask("local").missing_packages == tuple(moving.IMPORTED_AS)

    def test_every_package_is_asked_for_by_its_module(self):
        assert importlib.util.find_spec is moving.find_spec
        assert set(moving.missing_packages()) <= set(moving.IMPORTED_AS)
