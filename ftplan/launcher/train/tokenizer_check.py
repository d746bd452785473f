"""Whether a tokenizer reads text the way its vocabulary was made.

Tokenizers of the `tokenizers` library that were converted from SentencePiece wrongly split words that are one token of
their own vocabulary: OpenLLaMA's `thermal` became three tokens in place of 14412 (huggingface/transformers 24233), and
the model trains on sequences it never saw. Articles then say `use_fast=False`, which transformers 5 ignores (5.23,
tokenization_auto.py: "Always use fast tokenizers"), so that all that is left is to notice it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS: Final = 200
"""Words of the vocabulary that are tried, spread over it: some milliseconds."""
BROKEN_SHARE: Final = 0.2
"""Of words that are split. A right tokenizer splits hardly any: only those that no merge leads to."""
_WORD: Final = re.compile("[▁Ġ][A-Za-z]{4,12}")
"""A whole word, with the mark of a blank before it in SentencePiece's or in GPT-2's spelling."""


def split_words(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many words of the vocabulary, of those tried, the tokenizer splits; and how many were tried."""
    words = sorted((number, token) for token, number in tokenizer.get_vocab().items() if _WORD.fullmatch(token))
    tried = words[:: max(1, len(words) // WORDS)][:WORDS]
    return sum(not _is_whole(tokenizer, number, token[1:]) for number, token in tried), len(tried)


def doubt(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a user should know about the tokenizer; empty where nothing is wrong."""
    split, tried = split_words(tokenizer)
    if split <= BROKEN_SHARE * tried:
        return ""
    return (
        f"the tokenizer splits {split} of {tried} words that are one token of its own vocabulary: it was converted "
        "wrongly, and the model never saw text in that form; give a right one by --tokenizer"
    )


def _is_whole(tokenizer: PreTrainedTokenizerBase, number: int, word: str) -> bool:
    """Whether the word, with a blank before it or one that the tokenizer adds, is the token."""
    texts = (f" {word}", word)
    return any(tokenizer.encode(text, add_special_tokens=False) == [number] for text in texts)
