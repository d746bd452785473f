import pytest
from plans import planned, reason


@pytest.mark.parametrize(
    ("gpus", "model", "fields"),
    [
        ("2x24GB", "Qwen-7B", {}),
        ("1x8GB", "Qwen-7B", {}),
        ("8x80GB", "Qwen-7B", {"method": "full"}),
        ("2xcpu:16GB", "Qwen2.5-0.5B", {"seq_len": 256}),
        ("2xRTX4090", "Qwen2.5-32B", {}),
        ("2x8xH100", "Llama-3.1-70B", {"method": "full"}),
    ],
)
def test_every_choice_has_its_value_and_a_reason(gpus, model, fields):
    plan = planned(gpus, model, **fields)
    explained = {each.field: each for each in plan.reasons}
    assert len(explained) == len(plan.reasons)
    chosen = {"method", "sharding", "offload", "gradient_checkpointing", "micro_batch", "accumulation"}
    assert chosen | {"precision", "optimizer"} <= set(explained)
    for field in set(explained) - {"memory", "link", "network"}:
        assert explained[field].value == str(getattr(plan.config, field))
        assert explained[field].because


def test_the_method_comes_first():
    assert planned().reasons[0].field == "method"


@pytest.mark.parametrize(
    ("gpus", "fields", "because"),
    [
        ("2x24GB", {}, "16-bit LoRA keeps the base weights exact"),
        ("1x12GB", {}, "16-bit LoRA does not fit"),
        ("2x24GB", {"method": "lora"}, "asked for"),
        ("2x24GB", {"method": "qlora"}, "asked for"),
        ("8x80GB", {"method": "full"}, "full fine-tuning was asked for"),
    ],
)
def test_why_the_method(gpus, fields, because):
    assert because in reason(planned(gpus, **fields), "method").because


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sharding", "zero2"),
        ("gradient_checkpointing", True),
        ("micro_batch", 1),
        ("offload", "none"),
        ("lora_rank", 8),
        ("optimizer", "adamw_torch"),
        ("precision", "bf16"),
    ],
)
def test_what_was_pinned_was_asked_for(field, value):
    found = reason(planned(pins={field: value}), field)
    assert (found.value, found.because) == (str(value), "asked for")


def test_weights_in_16_bit_that_were_asked_for_are_not_called_fp32():
    plan = planned("2x24GB", "Qwen2.5-0.5B", method="full", pins={"weights_dtype": "bf16", "precision": "none"})
    assert plan.config is not None
    assert plan.config.weights_dtype == "bf16"
    assert "fp32 master weights" not in reason(plan, "method").because


def test_one_card_has_nothing_to_share():
    assert reason(planned("1x24GB"), "sharding").because.startswith("one card, nothing to share")


def test_plain_replication_that_fits_is_compared_with_every_other_sharding():
    because = reason(planned("2xA6000"), "sharding").because
    assert because.startswith("ddp fits: ")
    assert all(name in because for name in ("fsdp2", "zero1", "zero2", "zero3"))


def test_sharding_is_explained_by_what_does_not_fit():
    assert reason(planned("2xRTX4090", "Qwen2.5-32B"), "sharding").because.startswith("ddp does not fit")


def test_replication_says_that_more_cards_do_not_shrink_a_job():
    assert "more cards give speed" in reason(planned(), "memory").because
    assert "memory" not in {each.field for each in planned("2xRTX4090", "Qwen2.5-32B").reasons}


@pytest.mark.parametrize(("gpus", "ranks"), [("1x24GB", 1), ("2x24GB", 2), ("4x80GB", 4)])
def test_the_accumulation_is_an_exact_product(gpus, ranks):
    plan = planned(gpus, global_batch=24)
    config = plan.config
    because = reason(plan, "accumulation").because
    assert because == f"{config.micro_batch} x {config.accumulation} on {ranks} rank(s) = 24 samples, exactly"


def test_a_single_process_counts_as_one_rank():
    plan = planned("4x80GB", global_batch=24, pins={"sharding": "none"})
    assert "on 1 rank(s) = 24 samples" in reason(plan, "accumulation").because


@pytest.mark.parametrize(
    ("gpus", "because"),
    [
        ("1xRTX3090", "every card computes in bf16"),
        ("2xRTX2080Ti", "RTX2080Ti has no bf16"),
        ("2xcpu:16GB", "a CPU computes in fp32"),
    ],
)
def test_why_the_precision(gpus, because):
    assert because in reason(planned(gpus, "Qwen2.5-0.5B", seq_len=256), "precision").because


@pytest.mark.parametrize(
    ("gpus", "because"), [("1x24GB", "one fused kernel"), ("2xcpu:16GB", "the plain AdamW, which runs on a CPU")]
)
def test_why_the_optimizer(gpus, because):
    assert because in reason(planned(gpus, "Qwen2.5-0.5B", seq_len=256), "optimizer").because


def test_the_default_rank():
    assert reason(planned(), "lora_rank").because == "the default"


def test_a_rank_smaller_than_the_default_is_explained():
    """Between the card that holds rank 16 without offload and the one that does not are some with a smaller rank."""
    plans = [planned(f"1xRTX4090:{size}MB") for size in range(8_150, 8_450, 50)]
    smaller = [plan for plan in plans if plan.config is not None and plan.config.lora_rank < 16]
    assert smaller
    for plan in smaller:
        fewest = plan.config.lora_targets == "qv"
        expected = "adapters on query and value only" if fewest else "a smaller rank"
        assert expected in reason(plan, "method").because


def test_full_training_explains_no_rank():
    assert "lora_rank" not in {each.field for each in planned("8x80GB", method="full").reasons}


def test_a_choice_by_speed_names_what_the_next_best_would_cost():
    """Without checkpointing nothing is computed twice: a card with room takes it, and says how much faster it is."""
    because = reason(planned("1x80GB"), "gradient_checkpointing").because
    assert because.startswith("the fastest that fits: activation checkpointing is ")
    assert because.endswith("% slower")


def test_a_choice_that_memory_forces_names_the_nearest_miss():
    because = reason(planned("1x8GB"), "gradient_checkpointing").because
    assert because == "with qlora, nothing else fits; the nearest miss is no activation checkpointing"
