import pytest
from small import EMBEDDING, HIDDEN, TOKENS, VOCABULARY, small_model, workload

from ftplan.estimators.loss import head_copy_bytes, liger_chunk_rows, loss_memory

LOGITS = TOKENS * VOCABULARY
INPUT = TOKENS * HIDDEN


def loss(**fields):
    return loss_memory(workload(**fields))


def test_full_logits_cost_ten_bytes_forward_and_twelve_backward():
    """bf16 logits, their fp32 copy and log-softmax; then log-softmax and two gradients in fp32."""
    memory = loss(loss_path="full")
    assert (memory.forward, memory.backward, memory.evaluation) == (10 * LOGITS, 12 * LOGITS, 10 * LOGITS)


def test_the_gradient_of_a_trained_head_follows_the_logits():
    """Where the vocabulary is far larger than the tokens, the head's own gradient is the higher moment."""
    one_token = loss(method="full", seq_len=1, micro_batch=1)
    assert one_token.backward == 2 * VOCABULARY + 2 * EMBEDDING


def test_a_softcapped_head_keeps_the_tanh_too():
    capped = small_model(
        model_type="gemma2", architectures=["Gemma2ForCausalLM"], head_dim=16, final_logit_softcapping=30.0
    )
    assert capped.logits_softcap
    assert loss_memory(workload(model=capped)).forward == (10 + 4) * LOGITS


def test_chunked_logits_exist_tile_by_tile():
    memory = loss(stack="trl")
    tile = TOKENS * VOCABULARY * 2
    assert memory.forward == memory.evaluation == 2 * INPUT + tile
    assert memory.backward == (2 + 4) * INPUT + tile


def test_a_tile_has_at_most_4096_tokens_and_32768_columns():
    wide = small_model(vocab_size=100_000)
    memory = loss_memory(workload(model=wide, stack="trl", seq_len=16_384, micro_batch=1))
    assert memory.forward == 16_384 * HIDDEN * 2 + 4096 * 32_768 * 2


def test_a_trained_head_accumulates_its_gradient_in_fp32_and_converts_it():
    frozen, trained = loss(stack="trl"), loss(stack="trl", method="full")
    assert trained.backward - frozen.backward == EMBEDDING * (4 + 2)


def test_liger_makes_gradients_in_the_forward():
    memory = loss(kernels="liger")
    chunk = 16 * VOCABULARY * (2 + 4)
    assert memory.forward == chunk + 2 * INPUT
    assert memory.backward == 2 * INPUT
    assert memory.evaluation == chunk + 2 * INPUT


def test_liger_s_gradient_of_a_trained_head_is_fp32():
    assert loss(kernels="liger", method="full").forward - loss(kernels="liger").forward == 4 * EMBEDDING


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "hidden", "rows"),
    [
        (TOKENS, VOCABULARY, HIDDEN, 16),
        (4096, 151_936, 3584, 128),  # 43 chunks of 96 rows, rounded up to a power of two
        (2048, 32_000, 4096, 256),
        (8, 1000, 64, 1),
        (10, 100, 200, 10),  # never more than there are tokens
        (1, 151_936, 3584, 1),
    ],
)
def test_rows_of_a_liger_chunk(tokens, vocabulary, hidden, rows):
    assert liger_chunk_rows(tokens, vocabulary, hidden) == rows


@pytest.mark.parametrize(
    ("fields", "copy"),
    [
        ({"method": "full", "weights_dtype": "fp32", "precision": "bf16"}, 2 * EMBEDDING),
        ({"method": "qlora", "prepare_kbit": True, "precision": "bf16"}, 2 * EMBEDDING),
        ({"method": "full", "weights_dtype": "fp32"}, 0),
        ({"precision": "bf16"}, 0),
        ({"method": "full", "weights_dtype": "fp32", "precision": "bf16", "sharding": "fsdp2"}, 0),
    ],
)
def test_autocast_copies_an_fp32_head_on_every_loss_path(fields, copy):
    assert head_copy_bytes(workload("2x24GB", **fields)) == copy
    for path in ("full", "chunked"):
        with_copy = loss_memory(workload("2x24GB", **{**fields, "loss_path": path}))
        assert with_copy.forward >= copy + 2 * INPUT


@pytest.mark.parametrize("path", ["full", "chunked"])
def test_liger_needs_less_than_any_other_path(path):
    liger, other = loss(kernels="liger"), loss(loss_path=path)
    assert max(liger.forward, liger.backward) < max(other.forward, other.backward)
