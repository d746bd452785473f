import pytest
from small import ADAPTER_PER_RANK, EMBEDDING, HEADS, LAYERS, QUANTIZED, workload

from ftplan.estimators.model_flops import peak_flops_per_second, token_flops
from ftplan.profiles.models import load_model

WEIGHTS = QUANTIZED + EMBEDDING
ADAPTERS = 8 * ADAPTER_PER_RANK
SCORES = LAYERS * HEADS * (16 + 16)
QWEN = load_model("Qwen2.5-7B")


@pytest.mark.parametrize("checkpointing", [True, False])
def test_recomputation_is_no_work_of_the_model(checkpointing):
    full = token_flops(workload(method="full", gradient_checkpointing=checkpointing))
    assert full == (6 * WEIGHTS, 3 * SCORES)


def test_frozen_weights_have_no_gradients_and_scores_always_have_two():
    assert token_flops(workload()) == (4 * WEIGHTS + 6 * ADAPTERS, 3 * SCORES)


def test_it_is_palms_count_for_full_training_with_the_causal_half_of_the_scores():
    flops = token_flops(workload(model=QWEN, method="full"))
    dense = QWEN.total_params - QWEN.embedding_params  # the embedding is a look-up
    heads, head_dim, seq_len = 28, 128, 2048
    palm_scores = 12 * 28 * heads * head_dim * seq_len
    assert flops.fixed == pytest.approx(6 * dense, rel=0.001)
    assert flops.per_row_token * seq_len == palm_scores / 2


def test_the_peak_is_that_of_all_devices_in_the_dtype_of_the_products():
    given = {"model": QWEN, "sharding": "ddp"}
    assert peak_flops_per_second(workload("2xA100-80GB", precision="bf16", **given)) == 2 * 312e12
    assert peak_flops_per_second(workload("1xA100-80GB", model=QWEN, precision="bf16")) == 312e12
    whole = {"weights_dtype": "fp32", "precision": "none"}
    assert peak_flops_per_second(workload("2xA100-80GB", **whole, **given)) == 2 * 19.5e12
    mixed = peak_flops_per_second(workload("1xA100-80GB+1xRTX3090", precision="bf16", **given))
    assert 312e12 < mixed < 2 * 312e12
    assert peak_flops_per_second(workload("2xcpu", model=QWEN, sharding="ddp")) is None
