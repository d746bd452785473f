"""What people come with: the planning part of the scenarios that ftplan must handle, each as it is told."""

import pytest

from ftplan.results import Phase, Timeline
from ftplan.units import GB, GIB
from ftplan.workflows import estimating, inverse, planning


def plan(gpus, model, **fields):
    return planning.plan(planning.plan_request(gpus, model=model, **fields))


def estimate(gpus, **fields):
    return estimating.estimate(fields, gpus).estimate


def because(chosen, field):
    (only,) = [reason.because for reason in chosen.reasons if reason.field == field]
    return only


def samples(chosen, ranks):
    return chosen.config.micro_batch * chosen.config.accumulation * ranks


ARTICLE = {"lora_targets": "qv", "weights_dtype": "fp16", "precision": "fp16"}


class TestTwoA6000WithAGlobalBatchOf64:
    """1. Qwen-7B, LoRA on q and v, micro-batch 4 x 8 x 2, DeepSpeed: is ZeRO worth it here?"""

    @pytest.mark.parametrize("pins", [{}, ARTICLE, {**ARTICLE, "micro_batch": 4, "accumulation": 8}])
    def test_the_batch_is_held_exactly_without_zero(self, pins):
        chosen = plan("2xA6000", "Qwen-7B", method="lora", global_batch=64, pins=pins)
        assert chosen.config.sharding == "ddp"
        assert samples(chosen, 2) == chosen.global_batch == 64

    @pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
    def test_the_reason_says_that_no_zero_stage_is_faster(self, stage):
        chosen = plan("2xA6000", "Qwen-7B", method="lora", global_batch=64, pins=ARTICLE)
        said = next(part for part in because(chosen, "sharding").split(", ") if stage in part)
        assert said.endswith(("about as fast", "no faster", "slower"))

    def test_the_batch_is_explained_as_a_product(self):
        pins = {**ARTICLE, "micro_batch": 4, "accumulation": 8}
        chosen = plan("2xA6000", "Qwen-7B", method="lora", global_batch=64, pins=pins)
        assert because(chosen, "accumulation") == "4 x 8 on 2 rank(s) = 64 samples, exactly"


class TestNothingButModelAndCards:
    """2. `plan --model Qwen-7B --gpus 2x24GB`."""

    def test_there_is_a_plan_with_reasons_terms_and_alternatives(self):
        chosen = plan("2x24GB", "Qwen-7B")
        assert chosen.estimate.fits
        assert samples(chosen, 2) == 32
        assert len(chosen.reasons) >= 8
        assert {"weights", "adapters", "optimizer states"} <= {term.name for term in chosen.estimate.terms}
        assert chosen.alternatives
        assert chosen.rejections


class TestZero3WithOptimizerOffload:
    """3. Two A6000, Baichuan2-13B: the article claims a peak within 45 GB."""

    def test_the_report_has_device_memory_by_rank_and_host_memory(self):
        result = estimate(
            "2xA6000", model="Baichuan2-13B", method="lora", sharding="zero3", offload="optimizer", stack="trl"
        )
        assert [rank.rank for rank in result.ranks] == [0, 1]
        assert all(0 < rank.peak_allocated_bytes < 45 * GB for rank in result.ranks)
        assert {"processes", "offloaded states"} <= {term.name for term in result.host.terms}
        assert 0 < result.host_bytes < result.host.capacity_bytes

    def test_it_is_not_the_best_way_on_these_cards(self):
        pinned = plan("2xA6000", "Baichuan2-13B", pins={"sharding": "zero3", "offload": "optimizer"})
        free = plan("2xA6000", "Baichuan2-13B")
        assert pinned.config.offload == "optimizer"
        assert free.config.offload == "none"
        assert free.estimate.tokens_per_second > pinned.estimate.tokens_per_second


class TestFourBitOnOneRtx3090:
    """4. The 4-bit weights of Qwen-7B take about 6 GB: the rest of the bill, and it fits."""

    def test_weights_take_about_six_gigabytes_and_the_rest_is_itemised(self):
        chosen = plan("1xRTX3090", "Qwen-7B", method="qlora")
        weights = next(term.bytes for term in chosen.estimate.terms if term.name == "weights")
        assert 5 * GB < weights < 7 * GB
        assert chosen.estimate.fits
        at_peak = [term for term in chosen.estimate.terms if chosen.estimate.peak_phase in term.alive]
        assert sum(term.bytes for term in at_peak) == chosen.estimate.peak_allocated_bytes > weights


class TestLargeModelWithoutSharding:
    """5. Eight RTX 4090, Qwen2-VL-72B, a full copy on every rank: it dies while loading."""

    MODEL = "Qwen2-VL-72B"

    def test_replication_does_not_fit_from_the_load_on(self):
        result = estimate("8xRTX4090", model=self.MODEL, method="lora", sharding="ddp")
        assert not result.fits
        load = Timeline(result.terms).bytes_at(Phase.LOAD)
        assert load > 5 * result.capacity_bytes

    def test_the_pages_of_the_checkpoint_are_on_the_host_once(self):
        host = estimate("8xRTX4090", model=self.MODEL, method="lora", sharding="ddp").host
        assert host.fits
        assert host.peak_bytes > 1000 * GIB
        assert host.peak_bytes - host.shared_bytes < host.capacity_bytes

    def test_pinned_replication_has_no_plan_and_says_how_much_is_missing(self):
        chosen = plan("8xRTX4090", self.MODEL, pins={"sharding": "ddp"})
        assert chosen.config is None
        nearest = chosen.rejections[0]
        assert nearest.config.sharding == "ddp"
        assert nearest.rejection.rule == "memory"
        assert nearest.rejection.lacking_bytes > 10 * GIB
        assert "sharding" in nearest.rejection.hint

    def test_4_bit_weights_would_be_whole_on_every_card_before_they_are_sharded(self):
        fields = {"method": "qlora", "sharding": "fsdp2", "gradient_checkpointing": True, "micro_batch": 1}
        result = estimate("8xRTX4090", model=self.MODEL, **fields)
        assert not result.fits
        assert result.peak_phase is Phase.LOAD

    def test_the_way_out_is_sharding_with_offload_to_a_host_that_has_the_ram(self):
        assert plan("8xRTX4090", self.MODEL, host_memory="128GB").config is None
        chosen = plan("8xRTX4090", self.MODEL)
        assert chosen.config.sharding in ("fsdp2", "zero3")
        assert chosen.config.offload == "optimizer+params"
        assert because(chosen, "sharding").startswith("ddp does not fit")
        assert chosen.estimate.fits
        assert chosen.estimate.host.fits


class TestOneCardOf8Gb:
    """6. Full and 16-bit LoRA do not fit; QLoRA with a small rank and micro-batch 1 does, or the lack is counted."""

    @pytest.mark.parametrize("method", ["full", "lora"])
    def test_plain_ways_do_not_fit(self, method):
        assert not estimate("1x8GB", model="Qwen-7B", method=method, sharding="none").fits

    @pytest.mark.parametrize("global_batch", [16, 32, 64])
    def test_qlora_with_micro_batch_1_reaches_the_global_batch_or_the_lack_is_counted(self, global_batch):
        chosen = plan("1x8GB", "Qwen-7B", global_batch=global_batch)
        if chosen.config is None:
            assert chosen.rejections[0].rejection.lacking_bytes > 0
        else:
            assert chosen.config.method == "qlora"
            assert chosen.config.lora_rank <= 16
            assert chosen.config.micro_batch == 1
            assert chosen.config.accumulation == global_batch

    def test_a_card_far_too_small_says_by_how_much(self):
        chosen = plan("1x4GB", "Qwen-7B", method="qlora")
        assert chosen.config is None
        nearest = chosen.rejections[0].rejection
        assert nearest.rule == "memory"
        assert nearest.lacking_bytes == nearest.needed_bytes - nearest.available_bytes > 0


class TestTuringCards:
    """7. Two RTX 2080 Ti, ChatGLM3-6B: no bf16, no flash attention 2."""

    def test_everything_is_fp16_with_a_kernel_that_exists_there(self):
        chosen = plan("2xRTX2080Ti", "chatglm3-6b")
        configs = [chosen.config, *(one.config for one in chosen.alternatives)]
        assert {config.precision for config in configs} == {config.weights_dtype for config in configs} == {"fp16"}
        assert {config.attention for config in configs} <= {"sdpa", "eager"}
        assert "no bf16" in because(chosen, "precision")

    @pytest.mark.parametrize(
        ("pins", "rule"),
        [({"precision": "bf16"}, "needs-bf16"), ({"attention": "flash_attention_2"}, "attention-kernel")],
    )
    def test_what_the_cards_lack_is_rejected_by_name(self, pins, rule):
        chosen = plan("2xRTX2080Ti", "chatglm3-6b", pins=pins)
        assert chosen.config is None
        assert rule in {group.rejection.rule for group in chosen.rejections}


class TestLlamaRecipes:
    """9. LoRA with FSDP on four A100, full bf16 on eight, 70B full on eight H100."""

    def test_lora_with_fsdp(self):
        chosen = plan("4xA100-80GB", "Llama-3.1-8B", method="lora", pins={"sharding": "fsdp2"})
        assert (chosen.config.method, chosen.config.sharding) == ("lora", "fsdp2")
        assert samples(chosen, 4) == 32

    def test_full_fine_tuning_in_pure_bf16(self):
        pins = {"weights_dtype": "bf16", "precision": "none"}
        chosen = plan("8xA100-80GB", "Llama-3.1-8B", method="full", pins=pins)
        assert (chosen.config.weights_dtype, chosen.config.precision) == ("bf16", "none")
        assert chosen.estimate.fits

    def test_70b_full_fits_or_the_lack_is_counted(self):
        chosen = plan("8xH100", "Llama-3.1-70B", method="full", global_batch=8, pins={"micro_batch": 1})
        if chosen.config is None:
            assert chosen.rejections[0].rejection.lacking_bytes > 0
        else:
            assert chosen.config.micro_batch == 1
            assert chosen.config.sharding not in ("none", "ddp")

    @pytest.mark.parametrize("sharding", ["fsdp2", "fsdp2-grad-op", "ddp", "hsdp"])
    def test_every_strategy_of_fsdp_can_be_asked_for(self, sharding):
        """FULL_SHARD, SHARD_GRAD_OP, NO_SHARD and HYBRID_SHARD."""
        chosen = plan("2x4xA100-80GB", "Llama-3.1-8B", method="lora", pins={"sharding": sharding})
        assert chosen.config.sharding == sharding


class TestTwoMachines:
    """12. Two machines of eight cards: HYBRID_SHARD inside and across nodes."""

    def test_all_cards_take_part_in_one_batch(self):
        chosen = plan("2x8xH100", "Llama-3.1-70B", method="lora", global_batch=64)
        assert samples(chosen, 16) == 64
        assert len(chosen.estimate.ranks) == 16

    def test_hybrid_sharding_is_considered_and_compared(self):
        chosen = plan("2x8xH100", "Llama-3.1-70B", method="lora", global_batch=64)
        considered = {chosen.config.sharding, *(one.config.sharding for one in chosen.alternatives)}
        rejected = {group.config.sharding for group in chosen.rejections}
        assert "hsdp" in considered | rejected
        assert "hsdp" in because(chosen, "sharding") or chosen.config.sharding == "hsdp"

    def test_hybrid_sharding_holds_a_node_s_share_of_the_weights(self):
        pinned = plan("2x8xH100", "Llama-3.1-70B", method="lora", pins={"sharding": "hsdp"})
        weights = next(term for term in pinned.estimate.terms if term.name == "weights")
        assert "8 ranks" in weights.reason

    def test_where_the_network_is_slow_only_gradients_cross_it(self):
        """Gathers stay inside a node under HYBRID_SHARD; on a network like NVLink plain sharding needs less."""
        slow, fast = (plan("2x8xH100", "Llama-3.1-70B", method="lora", network=rate) for rate in ("5GB", "400GB"))
        assert slow.config.sharding == "hsdp"
        assert fast.config.sharding == "fsdp2"
        assert because(slow, "network") == "of each node to the others: as stated"


class TestFromOneGpuToEightWithTheSameConfiguration:
    """8. Accumulation 8 was kept, the batch grew eight times, and the loss stalled."""

    def moved(self, **fields):
        pins = {"micro_batch": 1, "accumulation": 8}
        return plan("8xA100-80GB", "Llama-3.1-8B", method="lora", pins=pins, **fields)

    def test_the_batch_is_kept_with_accumulation_1(self):
        chosen = self.moved(was={"gpus": 1, "learning_rate": 1e-4})
        assert (chosen.config.micro_batch, chosen.config.accumulation) == (1, 1)
        assert chosen.global_batch == 8
        (told,) = [one for one in chosen.advice if one.topic == "batch"]
        assert told.figures["samples_unchanged"] == 64
        assert "8 times the 8 on 1" in told.text

    def test_or_the_learning_rate_is_scaled_and_the_rule_is_named(self):
        chosen = self.moved(was={"gpus": 1, "learning_rate": 1e-4}, global_batch=64)
        assert chosen.global_batch == 64
        (told,) = [one for one in chosen.advice if one.topic == "learning_rate"]
        assert told.figures["learning_rate_linear"] == pytest.approx(8e-4)
        assert told.figures["learning_rate_square_root"] == pytest.approx(8e-4 / 8**0.5)
        assert "square root scaling" in told.text
        assert "linear scaling" in told.text


class TestWhichCardDoINeed:
    """13. The smallest inventories that fit, by method."""

    def fewest(self, model, method, *cards):
        request = planning.plan_request("24GB", model=model, method=method)
        return {row.card: row.inventory for row in inverse.needed_cards(request, cards, 8)}

    def test_70b_in_4_bit(self):
        assert self.fewest("Llama-3.1-70B", "qlora", "24GB", "80GB") == {"24GB": None, "80GB": "1x80GB"}

    def test_all_of_8b(self):
        found = self.fewest("Llama-3.1-8B", "full", "24GB", "80GB")
        assert found["80GB"] in ("1x80GB", "2x80GB")
        assert found["24GB"] in ("4x24GB", "8x24GB")
