import pytest
from plans import cluster, request

from ftplan.planner.space import DEFAULT_RANK, FSDP, OPTIMIZER, candidates, families, half_precision, tiers
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig


def space(gpus="2x24GB", model="Qwen-7B", tier=0, **fields):
    asked = request(gpus, model, **fields)
    return list(candidates(tiers(asked)[tier], asked, load_model(model), cluster(gpus)))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("auto", ["lora", *["qlora"] * 8, *["lora"] * 4]),
        ("lora", ["lora"] * 8),
        ("qlora", ["qlora"] * 8),
        ("full", ["full"] * 4),
    ],
)
def test_quality_comes_before_speed(method, expected):
    assert [tier.method for tier in tiers(request(method=method))] == expected


def test_full_fine_tuning_only_when_asked():
    assert "full" not in {tier.method for tier in tiers(request(method="auto"))}


def test_smaller_ranks_come_after_the_default():
    on_device = tiers(request(method="qlora"))[:4]
    assert [(tier.lora_rank, tier.lora_targets) for tier in on_device] == [
        (DEFAULT_RANK, "all-linear"),
        (8, "all-linear"),
        (4, "all-linear"),
        (8, "qv"),
    ]


def test_base_weights_leave_the_cards_last_of_all():
    on_host = ["optimizer+params" in tier.offloads for tier in tiers(request(method="auto"))]
    assert any(on_host)
    assert on_host == sorted(on_host)


def test_every_tier_says_why_it_has_its_place():
    for method in ("auto", "lora", "qlora", "full"):
        assert all(tier.because for tier in tiers(request(method=method)))


@pytest.mark.parametrize(
    ("gpus", "global_batch", "ranks"),
    [("2x24GB", 64, 2), ("1x24GB", 7, 1), ("3x24GB", 30, 3), ("2x8xH100", 96, 16), ("2xcpu:8GB", 6, 2)],
)
def test_every_candidate_keeps_the_global_batch_exactly(gpus, global_batch, ranks):
    found = space(gpus, global_batch=global_batch)
    assert found
    assert {config.micro_batch * config.accumulation * ranks for config in found} == {global_batch}


def test_no_candidate_comes_twice():
    found = space(global_batch=48)
    assert len(set(map(repr, found))) == len(found)


def test_several_cards_are_never_left_idle_unless_asked():
    assert "none" not in {config.sharding for config in space("2x24GB")}
    assert {config.sharding for config in space("2x24GB", pins={"sharding": "none"})} == {"none"}


def test_a_pinned_single_process_takes_the_whole_batch():
    found = space("3x24GB", global_batch=32, pins={"sharding": "none"})
    assert {config.micro_batch * config.accumulation for config in found} == {32}


def test_one_card_shards_only_to_offload():
    found = {(config.sharding, config.offload) for config in space("1x24GB")}
    assert ("none", "none") in found
    assert all(offload != "none" for sharding, offload in found if sharding != "none")


@pytest.mark.parametrize(
    "pins",
    [
        {"lora_rank": 64, "lora_targets": "qv", "lora_dropout": 0.05},
        {"micro_batch": 4, "accumulation": 4},
        {"gradient_checkpointing": True, "sharding": "zero2", "offload": "optimizer"},
        {"optimizer": "sgd", "attention": "eager", "precision": "fp16", "weights_dtype": "fp16"},
        {"packing": True, "padding": True, "expandable_segments": False},
        {"kernels": "liger", "stack": "trainer", "sync_each_batch": True},
        {"lora_alpha": 7, "adapter_dtype": "bf16", "prepare_kbit": True},
    ],
)
def test_pins_are_honoured(pins):
    found = space(pins=pins)
    assert found
    for config in found:
        assert {field: getattr(config, field) for field in pins} == pins


@pytest.mark.parametrize(
    ("gpus", "half"), [("1xRTX3090", "bf16"), ("1xT4", "fp16"), ("1xV100", "fp16"), ("1xRTX4090+1xT4", "fp16")]
)
def test_the_16_bit_dtype_is_one_that_every_card_computes_in(gpus, half):
    assert half_precision(cluster(gpus)) == half
    assert {(config.precision, config.weights_dtype) for config in space(gpus)} == {(half, half)}


def test_a_cpu_computes_in_fp32_with_the_plain_optimizer():
    for config in space("2xcpu:8GB"):
        assert (config.precision, config.weights_dtype, config.optimizer) == ("none", "fp32", "adamw_torch")
        assert not config.expandable_segments


def test_an_architecture_without_sdpa_gets_eager_attention():
    supports = load_model("gpt-oss-20b").layers[0].attention.supports
    assert "sdpa" not in supports
    assert {config.attention for config in space("1xH100", "gpt-oss-20b")} == {"eager"}


def test_padding_comes_with_more_than_one_unpacked_sample():
    assert {config.padding for config in space() if config.micro_batch == 1} == {False}
    assert {config.padding for config in space() if config.micro_batch > 1} == {True}
    assert {config.padding for config in space(pins={"packing": True})} == {False}


def test_fsdp2_reduces_after_each_micro_batch_when_accumulating():
    for config in space():
        assert config.sync_each_batch == (config.sharding in FSDP and config.accumulation > 1)


def test_full_training_prefers_fp32_master_weights():
    master, small_states, pure, paged = (space("2x80GB", method="full", tier=tier) for tier in range(4))
    assert {config.weights_dtype for config in master if config.sharding == "ddp"} == {"fp32"}
    # FSDP2 and DeepSpeed make their fp32 copy from 16-bit weights.
    assert {config.weights_dtype for config in master if config.sharding != "ddp"} == {"bf16"}
    assert {(config.weights_dtype, config.sharding) for config in small_states} == {("fp32", "ddp")}
    assert {config.weights_dtype for config in pure} == {config.weights_dtype for config in paged} == {"bf16"}
    assert {config.optimizer for config in (*master, *pure)} == {OPTIMIZER}
    assert {config.optimizer for config in small_states} == {"adamw_bnb_8bit"}
    assert {config.optimizer for config in paged} == {"paged_adamw_8bit"}


def test_kernels_that_bring_their_own_loss_go_with_no_other():
    assert {(config.kernels, config.loss_path) for config in space()} == {("none", "chunked"), ("liger", "liger")}
    assert {config.kernels for config in space(pins={"loss_path": "full"})} == {"none"}
    assert {config.kernels for config in space(pins={"loss_path": "liger"})} == {"liger"}
    assert {config.kernels for config in space("2xcpu:8GB")} == {"none"}


def test_a_family_differs_in_its_split_only_and_its_micro_batches_rise():
    asked = request(global_batch=48)
    for family in families(tiers(asked)[0], asked, load_model("Qwen-7B"), cluster("2x24GB")):
        members = list(family.members())
        batches = [config.micro_batch for config in members]
        assert batches == sorted(set(batches))
        assert len({config.accumulation > 1 for config in members}) == 1
        same = {"micro_batch": 1, "accumulation": 1, "padding": False}
        assert len({repr(config.model_copy(update=same)) for config in members}) == 1
        assert all(RunConfig.model_validate(config.model_dump()) == config for config in members)


def test_a_batch_that_no_sharding_can_split_has_no_candidates():
    assert space("3x24GB", global_batch=32) == []
