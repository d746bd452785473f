import pytest
from small import PARAMS, SMALL, cluster, small_config

from ftplan.errors import InputError, UnknownNameError
from ftplan.estimators.analytic import estimate
from ftplan.profiles.models import load_model
from ftplan.results import Phase, Provenance, Timeline
from ftplan.units import GIB

QWEN = load_model("Qwen-7B")


def estimated(gpus="1x24GB", model=SMALL, margin=0.0, **fields):
    return estimate(small_config(**fields), model, cluster(gpus), margin=margin)


def names(result, phase=None):
    return {term.name for term in result.terms if phase is None or phase in term.alive}


SETUPS = [
    ("1x24GB", {}),
    ("1x24GB", {"method": "full", "gradient_checkpointing": False}),
    ("1x24GB", {"method": "qlora", "precision": "bf16", "prepare_kbit": True, "padding": True}),
    ("2x24GB", {"method": "full", "sharding": "ddp", "accumulation": 2}),
    ("4x24GB", {"method": "full", "sharding": "fsdp2", "precision": "bf16"}),
    ("2x2x24GB", {"method": "full", "sharding": "hsdp", "precision": "bf16"}),
    ("4x24GB", {"method": "full", "sharding": "zero3", "offload": "optimizer+params"}),
    ("2xcpu:4GB", {"sharding": "ddp", "weights_dtype": "fp32"}),
    ("1xH100", {"kernels": "liger", "attention": "eager", "expandable_segments": True}),
]


@pytest.mark.parametrize(("gpus", "fields"), SETUPS)
def test_the_peak_is_the_highest_sum_of_terms(gpus, fields):
    result = estimated(gpus, **fields)
    assert Timeline(result.terms).peak == (result.peak_phase, result.peak_allocated_bytes)


@pytest.mark.parametrize(("gpus", "fields"), SETUPS)
def test_the_figures_of_a_device_are_ordered(gpus, fields):
    result = estimated(gpus, **fields)
    assert result.peak_allocated_bytes <= result.peak_reserved_bytes <= result.process_bytes
    assert result.peak_allocated_bytes < result.needed_bytes


@pytest.mark.parametrize(("gpus", "fields"), SETUPS)
def test_every_term_is_positive_says_what_it_is_and_where_that_comes_from(gpus, fields):
    result = estimated(gpus, **fields)
    for term in (*result.terms, *result.host.terms):
        assert term.bytes >= 0
        assert term.alive
        assert term.reason
        assert term.source


@pytest.mark.parametrize(("gpus", "fields"), SETUPS)
def test_tokens_a_second_are_those_of_all_ranks_and_micro_batches(gpus, fields):
    result = estimated(gpus, **fields)
    tokens = 2 * 128 * fields.get("accumulation", 1) * len(result.ranks)
    assert result.tokens_per_second * result.step_seconds == pytest.approx(tokens)


def test_totals_of_parameters():
    assert estimated(method="full").trainable_params == estimated(method="full").total_params == PARAMS
    assert estimated(lora_rank=8).trainable_params == 8 * 4224


@pytest.mark.parametrize(
    ("gpus", "fields", "present", "absent"),
    [
        ("1x24GB", {}, {"adapters", "layer outputs", "recomputed layer"}, {"buckets", "NCCL"}),
        ("1x24GB", {"gradient_checkpointing": False}, {"mlp", "attention"}, {"recomputed layer"}),
        ("1x24GB", {"method": "full"}, {"weights", "gradients"}, {"adapters", "quantization"}),
        ("1x24GB", {"method": "qlora"}, {"quantization", "adapters"}, {"master weights"}),
        ("2x24GB", {"sharding": "ddp"}, {"buckets"}, {"gathered parameters", "master weights"}),
        ("2x24GB", {"sharding": "fsdp2"}, {"gathered parameters"}, {"master weights"}),
        ("2x24GB", {"sharding": "zero1"}, {"master weights", "optimizer states"}, {"gathered parameters"}),
        ("2x24GB", {"sharding": "zero3"}, {"master weights", "gathered parameters", "zero buffers"}, set()),
        ("2x24GB", {"sharding": "zero2", "offload": "optimizer"}, {"zero buffers"}, {"optimizer states"}),
        (
            "2x24GB",
            {"sharding": "zero3", "offload": "optimizer+params"},
            {"weights in transit"},
            {"weights", "optimizer states", "master weights"},
        ),
        ("1x24GB", {"optimizer": "sgd"}, {"weights"}, {"optimizer states", "optimizer temporaries"}),
        ("1x24GB", {"optimizer": "adamw_torch_fused"}, {"optimizer states"}, {"optimizer temporaries"}),
        ("1xcpu:4GB", {"weights_dtype": "fp32"}, {"weights"}, {"workspace"}),
    ],
)
def test_terms_of_a_setup(gpus, fields, present, absent):
    found = names(estimated(gpus, **fields))
    assert present <= found
    assert not absent & found


def test_padding_brings_a_mask_of_every_pair_of_positions():
    def held(**fields):
        return Timeline(estimated(micro_batch=2, **fields).terms).by_phase[Phase.LOSS]

    assert held(padding=True) - held() >= 2 * 128 * 128


def test_phases_hold_what_belongs_to_them():
    result = estimated(method="full", accumulation=2)
    assert names(result, Phase.LOAD) == {"weights"}
    assert "logits and loss" in names(result, Phase.LOSS)
    assert "logits and loss" not in names(result, Phase.BACKWARD)
    assert "mlp" in names(estimated(gradient_checkpointing=False), Phase.LOSS)
    assert "mlp" not in names(estimated(gradient_checkpointing=True), Phase.LOSS)
    assert "accumulated gradients" in names(result, Phase.FORWARD)
    assert "accumulated gradients" not in names(estimated(method="full", accumulation=1), Phase.FORWARD)
    assert {"gradients", "optimizer states", "optimizer temporaries"} <= names(result, Phase.OPTIMIZER)
    assert "evaluation" not in names(result, Phase.EVAL)
    assert "evaluation" in names(estimated(method="full", evaluates=True), Phase.EVAL)


def test_a_configuration_fits_up_to_the_margin():
    result = estimated(model=QWEN)
    used = result.needed_bytes / result.capacity_bytes
    assert result.fits
    assert estimated(model=QWEN, margin=1 - used - 0.001).fits
    assert not estimated(model=QWEN, margin=1 - used + 0.001).fits


def test_too_little_host_memory_does_not_fit_either():
    fields = {"method": "full", "sharding": "zero3", "offload": "optimizer+params"}
    result = estimated("1x24GB", model=load_model("Qwen2.5-72B"), **fields)
    assert not result.host.fits
    assert not result.fits


def test_ranks_differ_where_cards_do_and_the_worst_one_speaks():
    result = estimated("1xRTX4090+1xRTX3090:12GB", sharding="ddp")
    assert [rank.rank for rank in result.ranks] == [0, 1]
    assert [rank.device for rank in result.ranks] == ["RTX4090", "RTX3090"]
    assert result.capacity_bytes == result.ranks[1].capacity_bytes == 12 * 10**9
    assert result.needed_bytes == result.ranks[1].needed_bytes


def test_one_rank_that_does_not_fit_is_enough():
    result = estimated("1xA100-80GB+1xRTX3090:12GB", model=QWEN, sharding="ddp")
    assert [rank.fits for rank in result.ranks] == [True, False]
    assert not result.fits


def test_each_device_of_a_cluster_is_a_rank():
    assert len(estimated("2x8xH100", sharding="ddp").ranks) == 16


def test_without_sharding_one_device_works_and_a_note_says_so():
    result = estimated("4x24GB", sharding="none")
    assert len(result.ranks) == 1
    assert any("3 devices stay idle" in note for note in result.notes)


def test_notes_say_what_is_not_modelled():
    fsdp = estimated("2x24GB", sharding="fsdp2", offload="optimizer")
    assert any("FSDP2 offloads" in note for note in fsdp.notes)
    vision = estimated("1xH200", model=load_model("Qwen2-VL-72B"), method="qlora")
    assert any("vision tower" in note for note in vision.notes)
    assert estimated().notes == ()


def test_a_total_is_no_better_than_analytic():
    assert estimated().provenance is Provenance.ANALYTIC
    assert estimated().estimator == "analytic"


def test_nccl_and_context_are_beside_the_allocator():
    one, two = estimated("1x24GB"), estimated("2x24GB", sharding="ddp")
    assert one.process_bytes - one.peak_reserved_bytes == cluster("24GB").gpus[0].context_bytes
    assert two.process_bytes - two.peak_reserved_bytes > one.process_bytes - one.peak_reserved_bytes + GIB / 2


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"optimizer": "adamax"}, UnknownNameError, "unknown optimizer 'adamax'"),
        ({"lora_targets": "wqkv"}, InputError, "'wqkv' is no linear module"),
        ({"lora_targets": "lm_head"}, InputError, "not modelled"),
    ],
)
def test_names_of_nothing_raise(fields, error, said):
    with pytest.raises(error, match=said) as caught:
        estimated(**fields)
    assert caught.value.hint.startswith(("valid: all-linear, qv", "did you mean"))


def test_more_of_everything_for_a_larger_model():
    small, large = (estimated(model=load_model(name)) for name in ("Qwen2.5-1.5B", "Qwen2.5-7B"))
    assert small.peak_allocated_bytes < large.peak_allocated_bytes
    assert small.step_seconds < large.step_seconds
    assert small.host_bytes < large.host_bytes


def test_quantization_takes_less_than_a_third_of_the_weights():
    assert estimated(model=QWEN, method="qlora").peak_allocated_bytes < 0.7 * estimated(model=QWEN).peak_allocated_bytes
