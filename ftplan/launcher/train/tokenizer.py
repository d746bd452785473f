"""Loads the tokenizer a job names."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftplan.launcher.job import Source


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of ``source``; code from the repository is never run."""
    return AutoTokenizer.from_pretrained(source.location, trust_remote_code=False)
