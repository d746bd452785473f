import pytest
from small import (
    EMBEDDING,
    HEADS,
    HIDDEN,
    IN_LAYER_LINEARS,
    LAYERS,
    MICRO_BATCH,
    MLP,
    SEQ_LEN,
    SMALL,
    TOKENS,
    small_model,
    workload,
)

from ftplan.estimators.activations import Layers, layer_memory
from ftplan.estimators.timeline import mask_bytes

LAYER = SMALL.groups[0].layer
KV = 32
INPUTS = 6 * HIDDEN + MLP
"""Input widths of the seven linears: six read the hidden size, down reads the MLP's."""

SCORES = MICRO_BATCH * HEADS * SEQ_LEN**2
LOG_SUM = TOKENS * HEADS * 4


def memory(**fields):
    return layer_memory(LAYER, workload(**fields))


def test_frozen_linears_without_adapters_keep_no_input():
    """Only q_proj is adapted: its input is kept once; attention and MLP keep what their own backward needs."""
    kept = memory(lora_targets="q_proj", adapter_dtype="bf16")
    assert kept.attention == TOKENS * 2 * (HIDDEN + KV + KV + HIDDEN) + LOG_SUM + TOKENS * HIDDEN * 2
    assert kept.mlp == TOKENS * 2 * 3 * MLP


def test_linears_that_read_one_tensor_share_it():
    kept = memory(adapter_dtype="bf16")
    assert kept.attention == TOKENS * 2 * (HIDDEN + KV + KV + HIDDEN) + LOG_SUM + TOKENS * HIDDEN * 2
    assert kept.mlp == TOKENS * 2 * (3 * MLP + HIDDEN + MLP)
    assert kept.adapters == 7 * TOKENS * 8 * 2


def test_norms_keep_an_fp32_input_and_for_a_weight_gradient_their_output():
    assert memory().norms == 2 * TOKENS * HIDDEN * 4
    assert memory(method="full").norms == 2 * TOKENS * HIDDEN * (4 + 2)


def test_liger_s_norms_keep_their_input_and_its_mlp_recomputes():
    plain, liger = memory(adapter_dtype="bf16"), memory(adapter_dtype="bf16", kernels="liger")
    assert liger.norms == 2 * TOKENS * HIDDEN * 2
    assert plain.mlp - liger.mlp == TOKENS * MLP * 2


def test_fp32_adapters_keep_their_own_copy_of_each_input():
    """peft's dense layer converts its input to fp32; autocast converts that to the operands' dtype."""
    internals = 7 * TOKENS * 8 * 2
    assert memory(adapter_dtype="fp32").adapters == TOKENS * INPUTS * 4 + internals
    matrices = 8 * (128 + 96 + 96 + 128 + 3 * 320) * 2
    assert memory(adapter_dtype="fp32", precision="bf16").adapters == TOKENS * INPUTS * 2 + internals + matrices


def test_dropout_keeps_a_mask_and_a_copy_for_each_target():
    plain = memory(adapter_dtype="bf16")
    dropped = memory(adapter_dtype="bf16", lora_dropout=0.05)
    assert dropped.adapters - plain.adapters == TOKENS * INPUTS * (1 + 2)


def test_dropout_adds_only_the_mask_where_the_input_is_copied_anyway():
    plain, dropped = (memory(adapter_dtype="fp32", lora_dropout=rate) for rate in (0.0, 0.05))
    assert dropped.adapters - plain.adapters == TOKENS * INPUTS


def test_full_training_keeps_inputs_by_part_and_nothing_for_adapters():
    kept = memory(method="full")
    assert kept.adapters == 0
    assert kept.mlp == TOKENS * 2 * (3 * MLP + HIDDEN + MLP)


def test_eager_attention_keeps_scores_and_repeated_keys():
    """The softmax is fp32 and kept, and its copy in the operand's dtype; keys and values exist for every query head."""
    kept = memory(adapter_dtype="bf16", attention="eager")
    inputs = 2 * TOKENS * HIDDEN * 2
    assert kept.attention == TOKENS * 2 * 3 * HIDDEN + SCORES * (4 + 2) + inputs


def test_padding_repeats_keys_for_sdpa():
    plain, padded = (memory(adapter_dtype="bf16", padding=padding) for padding in (False, True))
    assert padded.attention - plain.attention == TOKENS * 2 * 2 * (HIDDEN - KV)


def test_without_grouped_heads_padding_changes_no_layer():
    work = workload(model=small_model(num_key_value_heads=HEADS), padding=True)
    plain = workload(model=small_model(num_key_value_heads=HEADS))
    assert layer_memory(work.model.groups[0].layer, work) == layer_memory(plain.model.groups[0].layer, plain)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 0),
        ({"padding": True}, MICRO_BATCH * SEQ_LEN**2 * 2),
        ({"attention": "eager"}, SEQ_LEN**2 * 2),
        ({"attention": "eager", "padding": True}, MICRO_BATCH * SEQ_LEN**2 * 2),
        ({"attention": "flash_attention_2", "padding": True}, 0),
    ],
)
def test_the_attention_mask_is_made_for_padded_batches_and_eager_attention(fields, size):
    assert mask_bytes(workload(**fields)) == size


@pytest.mark.parametrize(
    ("fields", "element"),
    [
        ({}, 2),
        ({"weights_dtype": "fp32"}, 4),
        ({"method": "qlora", "precision": "bf16"}, 2),
        ({"method": "qlora", "precision": "bf16", "prepare_kbit": True}, 4),
        ({"method": "full", "weights_dtype": "fp32", "precision": "bf16"}, 4),
        ({"method": "full", "weights_dtype": "fp32", "precision": "bf16", "sharding": "fsdp2"}, 2),
        ({"method": "full", "stack": "llamafactory", "precision": "bf16"}, 4),
    ],
)
def test_a_checkpoint_is_the_layer_s_input_in_the_residual_stream_s_dtype(fields, element):
    assert memory(gpus="2x24GB", **fields).checkpoint == TOKENS * HIDDEN * element


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({"method": "full", "weights_dtype": "fp32", "precision": "bf16"}, IN_LAYER_LINEARS * 2),
        ({"method": "full", "weights_dtype": "fp32"}, 0),
        ({"method": "full", "precision": "bf16"}, 0),
        ({"method": "qlora", "precision": "bf16", "prepare_kbit": True}, 0),
    ],
)
def test_autocast_copies_fp32_weights(fields, copies):
    assert memory(**fields).weight_copies == copies


def test_layers_add_up():
    layers = Layers.of(workload(adapter_dtype="bf16"))
    one = memory(adapter_dtype="bf16")
    assert layers.saved == LAYERS * one.saved
    assert layers.total("mlp") == LAYERS * one.mlp
    assert layers.checkpoints == LAYERS * one.checkpoint
    assert (layers.largest_saved, layers.transient) == (one.saved, one.transient)


def test_the_parts_of_a_layer_are_all_that_is_saved():
    one = memory(method="full", weights_dtype="fp32", precision="bf16", lora_dropout=0.1)
    parts = one.norms + one.attention + one.mlp + one.adapters + one.experts + one.weight_copies
    assert one.saved == parts


def test_activations_written_in_python_keep_their_steps():
    fused, python = (small_model(hidden_act=name) for name in ("gelu", "gelu_new"))
    kept = [layer_memory(model.groups[0].layer, workload(model=model)).mlp for model in (fused, python)]
    assert kept[0] < kept[1]


def test_routed_experts_keep_every_token_as_often_as_it_is_routed():
    def routed(per_token):
        model = small_model(
            model_type="mixtral",
            architectures=["MixtralForCausalLM"],
            num_local_experts=8,
            num_experts_per_tok=per_token,
        )
        return layer_memory(model.groups[0].layer, workload(model=model, method="full")).experts

    assert routed(1) == TOKENS * (2 * HIDDEN + 4 * MLP) * 2
    assert routed(4) == 4 * routed(1)


@pytest.mark.parametrize("field", ["norms", "attention", "mlp", "adapters", "checkpoint", "transient"])
def test_twice_the_samples_keep_twice_the_activations(field):
    one, two = (getattr(memory(adapter_dtype="bf16", micro_batch=count), field) for count in (4, 8))
    assert two == 2 * one


def test_the_backward_of_trained_weights_holds_the_largest_weight_s_gradient():
    frozen, trained = memory(adapter_dtype="bf16"), memory(method="full")
    assert trained.transient - frozen.transient == HIDDEN * MLP * 2


def test_the_embedding_is_no_part_of_a_layer():
    wide = small_model(vocab_size=100 * EMBEDDING)
    work = workload(model=wide)
    assert layer_memory(wide.groups[0].layer, work) == memory()
