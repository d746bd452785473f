import pytest
from small import (
    ADAPTER_PER_RANK,
    EMBEDDING,
    HIDDEN,
    IN_LAYER_LINEARS,
    LAYERS,
    MLP,
    PARAMS,
    QUANTIZED,
    QV_PER_RANK,
    SMALL,
    VOCABULARY,
    small_model,
    workload,
)

from ftplan.errors import UnknownNameError
from ftplan.estimators import sharding, states
from ftplan.results import Phase

REST = PARAMS - QUANTIZED
T = 8 * ADAPTER_PER_RANK


def test_the_small_model_is_as_counted_by_hand():
    assert SMALL.total_params == PARAMS
    assert states.quantized_params(SMALL) == QUANTIZED


@pytest.mark.parametrize(("dtype", "element"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_take_their_dtype(method, dtype, element):
    assert states.weight_bytes(workload(method=method, weights_dtype=dtype)) == PARAMS * element


def test_bytes_of_a_four_bit_element():
    assert states.NF4_BYTES == 0.5625
    assert pytest.approx(0.51587, abs=5e-6) == states.NF4_DOUBLE_BYTES


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("double", "packed"), [(False, QUANTIZED * 9 // 16), (True, QUANTIZED // 2 + QUANTIZED // 64 + QUANTIZED // 4096)]
)
def test_four_bit_packs_the_linears_and_leaves_the_rest(quantization, double, packed):
    work = workload(method="qlora", quantization=quantization, double_quantization=double)
    assert states.weight_bytes(work) == packed + 2 * REST


def test_kbit_preparation_makes_the_rest_fp32():
    plain, prepared = (workload(method="qlora", prepare_kbit=prepare) for prepare in (False, True))
    assert states.weight_bytes(prepared) - states.weight_bytes(plain) == 2 * REST


def test_kbit_preparation_adds_two_gigabytes_to_llama_8b():
    """FACTS: embeddings and head in fp32 are 2.1 GB more on Llama-3-8B."""
    llama_8b = small_model(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    plain, prepared = (workload(model=llama_8b, method="qlora", prepare_kbit=prepare) for prepare in (False, True))
    assert states.weight_bytes(prepared) - states.weight_bytes(plain) == pytest.approx(2.1e9, rel=0.005)


@pytest.mark.parametrize(
    ("targets", "elements"), [("all-linear", T), ("qv", 8 * QV_PER_RANK), ("q_proj", 8 * LAYERS * 128)]
)
@pytest.mark.parametrize(("dtype", "element"), [("fp32", 4), ("bf16", 2)])
def test_adapters_are_a_and_b_of_every_target(targets, elements, dtype, element):
    term = states.adapters(workload(lora_targets=targets, adapter_dtype=dtype))
    assert term.bytes == elements * element
    assert term.alive == tuple(Phase)


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        ("adamw_torch", 4 * PARAMS),
        ("adamw_torch_fused", 4 * PARAMS),
        ("paged_adamw_32bit", 8 * PARAMS),
        ("sgd", 0),
        # One byte a state and fp32 scales for blocks of 256; the embedding's states stay in 32 bits.
        ("adamw_bnb_8bit", (PARAMS - EMBEDDING) * 2 * (1 + 4 / 256) + 8 * EMBEDDING),
        ("paged_adamw_8bit", (PARAMS - EMBEDDING) * 2 * (1 + 4 / 256) + 8 * EMBEDDING),
        ("lion_8bit", (PARAMS - EMBEDDING) * (1 + 4 / 256) + 4 * EMBEDDING),
    ],
)
def test_states_of_full_training_in_bf16(optimizer, state):
    assert states.optimizer_states(workload(method="full", optimizer=optimizer)) == round(state)


def test_adafactor_keeps_a_row_and_a_column_of_each_matrix():
    linears = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 256), (64, 256), (256, 64)]
    elements = LAYERS * sum(map(sum, linears)) + 2 * (VOCABULARY + HIDDEN)
    assert states.optimizer_states(workload(method="full", optimizer="adafactor")) == 4 * elements


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [("adamw_torch", 8 * T), ("adamw_bnb_8bit", T * 2 * (1 + 4 / 256)), ("paged_adamw_32bit", 8 * T), ("sgd", 0)],
)
def test_states_of_fp32_adapters(optimizer, state):
    assert states.optimizer_states(workload(optimizer=optimizer)) == round(state)


def test_pure_bf16_adamw_costs_eight_bytes_a_parameter():
    """Weights 2, gradients 2 and two states of 2: transformers keeps the checkpoint's dtype."""
    work = workload(method="full")
    held = (states.weight_bytes(work), sharding.gradients_at_step(work), states.optimizer_states(work))
    assert held == (2 * PARAMS, 2 * PARAMS, 4 * PARAMS)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_fsdp2_costs_sixteen_bytes_a_parameter_over_the_ranks(ranks):
    """accelerate upcasts trainables to fp32 under mixed precision: weight 4, gradient 4, states 8, each over W."""
    work = workload(f"{ranks}x24GB", method="full", sharding="fsdp2", precision="bf16")
    held = (states.weight_bytes(work), sharding.gradients_at_step(work), states.optimizer_states(work))
    blocks = states.trainable_blocks(work, 4, ranks)
    exact = (held[0], held[1] - blocks, held[2] - 2 * blocks)
    assert exact == (4 * PARAMS // ranks, 4 * PARAMS // ranks, 8 * PARAMS // ranks)


@pytest.mark.parametrize(("stage", "weights"), [("zero1", 2 * PARAMS), ("zero2", 2 * PARAMS), ("zero3", PARAMS // 2)])
def test_zero_shards_states_and_in_stage_3_the_weights(stage, weights):
    work = workload("4x24GB", method="full", sharding=stage, precision="bf16")
    assert states.weight_bytes(work) == weights
    assert states.master_weights(work).bytes == 4 * PARAMS // 4
    assert states.optimizer_states(work) == 8 * PARAMS // 4


def test_ddp_shards_nothing():
    alone, replicated = workload(method="full"), workload("4x24GB", method="full", sharding="ddp")
    assert states.weight_bytes(replicated) == states.weight_bytes(alone)
    assert states.optimizer_states(replicated) == states.optimizer_states(alone)


def test_hsdp_shards_inside_a_node_only():
    one_node = workload("4x24GB", method="full", sharding="fsdp2", precision="bf16")
    two_nodes = workload("2x4x24GB", method="full", sharding="hsdp", precision="bf16")
    assert states.weight_bytes(two_nodes) == states.weight_bytes(one_node)


def test_llamafactory_holds_trainables_in_fp32():
    work = workload(method="full", stack="llamafactory", precision="bf16")
    assert states.weight_bytes(work) == 4 * PARAMS
    assert states.optimizer_states(work) == 8 * PARAMS


@pytest.mark.parametrize(
    ("optimizer", "temporary"),
    [
        ("adamw_torch", 2 * PARAMS),
        ("adamw_torch_fused", 0),
        ("adamw_bnb_8bit", 0),
        ("sgd", 0),
        ("adafactor", 16 * EMBEDDING),
    ],
)
def test_what_the_step_of_an_optimizer_allocates(optimizer, temporary):
    assert states.optimizer_temporary(workload(method="full", optimizer=optimizer)) == temporary


def test_adafactor_copies_16_bit_parameters_to_fp32():
    fp32 = workload(method="full", optimizer="adafactor", weights_dtype="fp32")
    assert states.optimizer_temporary(fp32) == 8 * EMBEDDING


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_gradients_to_update_are_the_rank_s_part(ranks):
    work = workload(f"{ranks}x24GB", method="full", sharding="zero2", precision="bf16")
    part = -(-PARAMS // ranks)
    assert sharding.gradients_at_step(work) == part * (2 + 4)  # DeepSpeed's bf16 partition and its fp32 copy


@pytest.mark.parametrize(("method", "elements"), [("full", EMBEDDING), ("lora", 8 * MLP)])
def test_the_largest_trainable_tensor(method, elements):
    assert states.largest_trainable(workload(method=method)) == elements


def test_an_unknown_optimizer_names_the_valid_ones():
    with pytest.raises(UnknownNameError, match="unknown optimizer 'adamw_torhc'") as caught:
        states.optimizer_cost("adamw_torhc")
    assert "adamw_torch" in caught.value.hint
    assert set(caught.value.valid) == set(states.OPTIMIZERS)


def test_biases_and_norms_are_never_packed():
    assert states.quantized_params(small_model(attention_bias=True)) == LAYERS * IN_LAYER_LINEARS
