"""A tokenizer that splits its own words is noticed, whatever library made it."""

from __future__ import annotations

import pytest

from ftplan.launcher import demo
from ftplan.launcher.train.tokenizer_check import doubt, split_words

pytest.importorskip("transformers")

WORDS = [f"{first}{second}" for first in ("ther", "form", "lent", "mast") for second in ("mal", "ula", "ils", "ery")]


def made_of(merges: list[tuple[str, str]]) -> object:
    """A tokenizer like OpenLLaMA's: whole words in the vocabulary, and these merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = {"<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", *(f"▁{word}" for word in WORDS)}
    pieces |= {left + right for left, right in merges}
    vocabulary = {piece: number for number, piece in enumerate(sorted(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def merges_to(word: str) -> list[tuple[str, str]]:
    spelled = f"▁{word}"
    return [(spelled[:end], spelled[end]) for end in range(1, len(spelled))]


def test_words_that_merges_lead_to_stay_whole() -> None:
    merges = list(dict.fromkeys(merge for word in WORDS for merge in merges_to(word)))
    split, tried = split_words(made_of(merges))
    assert (split, tried >= len(WORDS)) == (0, True)
    assert doubt(made_of(merges)) == ""


def test_lost_merges_are_told() -> None:
    # As in the issue: the blank stays apart, and the words are put together from letters.
    assert split_words(made_of([])) == (len(WORDS), len(WORDS))
    assert f"splits {len(WORDS)} of {len(WORDS)} words" in doubt(made_of([]))


def test_the_demo_s_tokenizer_is_right() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    split, tried = split_words(tokenizer)
    assert tried > 20
    assert split == 0
    assert doubt(tokenizer) == ""
