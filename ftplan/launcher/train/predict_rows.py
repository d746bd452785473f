"""Rows of data as prompts with the completion that is expected, in text and in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftplan.launcher.data import Row, TrainingData


@dataclass(frozen=True)
class Example:
    """A prompt and its completion; of plain text the prompt is empty, and nothing can be generated.

    ``tokens`` are both, at most as many as a row may have, and the loss is on those from ``completion_start`` on.
    """

    prompt: str
    reference: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    completion_start: int

    @property
    def scored_tokens(self) -> int:
        """Tokens the loss is on: a first token is predicted from nothing, and does not count."""
        return max(0, len(self.tokens) - max(1, self.completion_start))


def count_examples(data: TrainingData) -> int:
    """How many examples the rows make: one for each turn of the assistant, or for each row."""
    return sum(_turns(row) for row in data.rows) if data.shape == "messages" else len(data.rows)


def _turns(row: Row) -> int:
    return sum(message["role"] == "assistant" for message in row["messages"])


def examples(data: TrainingData, tokenizer: PreTrainedTokenizerBase, *, limit: int, max_length: int) -> list[Example]:
    """The first ``limit`` examples, with at most ``max_length`` tokens each, as training tokenizes them.

    Conversations are written by the tokenizer's chat template, which has to be there.
    """
    pairs = islice((pair for row in data.rows for pair in _pairs(row, data.shape, tokenizer)), limit)
    # A chat template writes the special tokens itself.
    special = data.shape != "messages"
    return [_example(*pair, tokenizer, max_length, special=special) for pair in pairs]


def _pairs(row: Row, shape: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str, str]]:
    """Prompt and completion as the model was trained to see them, and the completion without what ends it."""
    end = tokenizer.eos_token or ""
    if shape == "text":
        return [("", row["text"] + end, row["text"])]
    if shape == "prompt-completion":
        return [(row["prompt"], row["completion"] + end, row["completion"])]
    messages: Sequence[Mapping[str, str]] = row["messages"]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return [_turn(messages[:index], messages[index], tokenizer) for index in turns]


def _turn(
    before: Sequence[Mapping[str, str]], answer: Mapping[str, str], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str, str]:
    prompt = _templated(tokenizer, before, add_generation_prompt=True)
    whole = _templated(tokenizer, [*before, answer])
    if not whole.startswith(prompt):
        # Some templates leave a thought of the assistant out of the prompt, or put one in.
        prompt = _templated(tokenizer, before)
    return prompt, whole.removeprefix(prompt), answer["content"]


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))


def _example(
    prompt: str, completion: str, reference: str, tokenizer: PreTrainedTokenizerBase, max_length: int, *, special: bool
) -> Example:
    prompt_tokens = _tokens(tokenizer, prompt, special=special) if prompt else []
    whole = _tokens(tokenizer, prompt + completion, special=special)
    start = len(prompt_tokens)
    if whole[:start] != prompt_tokens:
        # The end of the prompt and the begin of the completion make one token: training cuts there, too.
        whole = prompt_tokens + _tokens(tokenizer, completion, special=False)
    return Example(prompt, reference, tuple(prompt_tokens[-max_length:]), tuple(whole[:max_length]), start)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
