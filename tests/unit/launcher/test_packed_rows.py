from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from ftplan.launcher.train.packed_rows import PackedRows
from ftplan.launcher.train.tokenizing import NO_LOSS

PAD = 7

SAMPLES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3)


def row(samples):
    tokens = [token for sample in samples for token in sample]
    return {"input_ids": tokens, "labels": tokens, "seq_lengths": [len(sample) for sample in samples]}


@given(st.lists(SAMPLES, min_size=1, max_size=4))
def test_every_sample_is_there_and_positions_begin_anew_with_each(batch):
    made = PackedRows(PAD)([row(samples) for samples in batch])
    longest = max(sum(map(len, samples)) for samples in batch)
    assert {name: tuple(values.shape) for name, values in made.items()} == dict.fromkeys(
        ("input_ids", "labels", "position_ids"), (len(batch), longest)
    )
    for index, samples in enumerate(batch):
        tokens = [token for sample in samples for token in sample]
        padding = longest - len(tokens)
        assert made["input_ids"][index].tolist() == tokens + [PAD] * padding
        assert made["labels"][index].tolist() == tokens + [NO_LOSS] * padding
        positions = [place for sample in samples for place in range(len(sample))]
        assert made["position_ids"][index].tolist() == positions + list(range(padding))


def test_attention_sees_no_other_sample():
    """A row of two samples gives each the logits it has alone."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM._from_config(shape, attn_implementation="sdpa").eval()
    samples, longer = [[1, 2, 3], [4, 5]], [[6, 7, 8, 9, 1, 2]]
    made = PackedRows(PAD)([row(samples), row(longer)])
    with torch.no_grad():
        logits = model(input_ids=made["input_ids"], position_ids=made["position_ids"], use_cache=False).logits
        begin = 0
        for sample in samples:
            alone = model(input_ids=torch.tensor([sample]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[0, begin : begin + len(sample)], alone, rtol=1e-4, atol=1e-5)
            begin += len(sample)
        torch.testing.assert_close(
            logits[1], model(input_ids=torch.tensor(longer), use_cache=False).logits[0], rtol=1e-4, atol=1e-5
        )
