"""Rows of data as prompts with the completion that is expected, in text and in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.launcher.bad_rows import BadRows
from ftplan.launcher.data import Row, TrainingData
from ftplan.launcher.train.chat import ChatFormat
from ftplan.launcher.train.tokenizing import NO_LOSS, Messages, Tokenized, common_length, tokenized


@dataclass(frozen=True)
class Example:
    """A prompt and its completion; of plain text the prompt is empty, and nothing can be generated.

    ``tokens`` are both as training has them, at most as many as a row may have, and ``scored`` says of each whether
    the loss is on it. ``prompt_tokens`` are the prompt alone: at least one token to go on from.
    """

    prompt: str
    reference: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def scored_tokens(self) -> int:
        """Tokens the loss is on."""
        return sum(self.scored)


def count_examples(data: TrainingData) -> int:
    """How many examples the rows make: one for each turn of the assistant, or for each row."""
    return sum(len(_turns(row)) for row in data.rows) if data.shape == "messages" else len(data.rows)


def examples(
    data: TrainingData, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, *, limit: int, max_length: int
) -> list[Example]:
    """The first ``limit`` examples, with at most ``max_length`` tokens each.

    Raises DataError for rows that ``chat`` cannot write.
    """
    asked, bad, found = _asked(data, limit), BadRows(), []
    for index, row in enumerate(asked.rows):
        # Where turns are rows of their own, those before the last are other examples.
        for whole in list(tokenized(asked.only([index]), tokenizer, chat, bad))[-1:]:
            found.append(_example(row, whole, tokenizer, chat, max_length))
    if bad.count:
        raise DataError(bad.told(len(asked.rows)), hint="leave them out of the data", field="data")
    return found


def _asked(data: TrainingData, limit: int) -> TrainingData:
    """The first ``limit`` examples as rows: of a conversation each turn of the assistant, with what led to it."""
    if data.shape != "messages":
        return data.only(range(min(limit, len(data.rows))))
    each = (
        ({"messages": row["messages"][: turn + 1]}, place)
        for row, place in zip(data.rows, data.places, strict=True)
        for turn in _turns(row)
    )
    rows, places = zip(*islice(each, limit), strict=True)
    return replace(data, rows=rows, places=places)


def _turns(row: Row) -> list[int]:
    return [index for index, message in enumerate(row["messages"]) if message["role"] == "assistant"]


def _example(
    row: Row, whole: Tokenized, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, max_length: int
) -> Example:
    prompt, reference = _texts(row, tokenizer, chat)
    # A chat template writes the special tokens itself.
    alone = [] if prompt is None else _tokens(tokenizer, prompt, special="messages" not in row)
    # A first token is predicted from nothing; the turns before the last are other examples.
    start = max(1, common_length(alone, whole.input_ids))
    scored = [index >= start and label != NO_LOSS for index, label in enumerate(whole.labels)]
    if prompt is None:
        alone = whole.input_ids[: scored.index(True)] if any(scored) else []
        prompt = tokenizer.decode(alone)
    return Example(
        prompt,
        reference,
        tuple(alone[-max_length:]) or _beginning(tokenizer),
        tuple(whole.input_ids[:max_length]),
        tuple(scored[:max_length]),
    )


def _texts(row: Row, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> tuple[str | None, str]:
    """What is generated from, and what is expected; None for a prompt that the chat template does not write so."""
    if "text" in row:
        return "", row["text"]
    if "prompt" in row:
        return row["prompt"], row["completion"]
    *before, answer = row["messages"]
    return _prompt(before, answer, tokenizer, chat), answer["content"]


def _prompt(
    before: Messages, answer: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, chat: ChatFormat
) -> str | None:
    """``before`` as a prompt; None where ``answer`` does not follow it in training: a template may put a thought in.

    Some templates refuse to write nothing, or the system's turn alone.
    """
    if not before:
        return None
    try:
        prompt = _templated(tokenizer, chat, before, add_generation_prompt=True)
    except jinja2.TemplateError:
        return None
    return prompt if _templated(tokenizer, chat, [*before, answer]).startswith(prompt) else None


def _templated(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, messages: Messages, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(list(messages), chat_template=chat.text, tokenize=False, **options))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token that an empty prompt is: the one a text begins with, or else ends with."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return () if token is None else (token,)
