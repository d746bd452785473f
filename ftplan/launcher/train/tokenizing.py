"""Rows as tokens and labels: what the loss is on is decided here.

It is on completions only: on what the assistant says in every turn, with what ends the turn; on the completion of a
pair; on all of a text. Tokens outside have the label `NO_LOSS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.launcher.bad_rows import BadRows, Place
from ftplan.launcher.data import Row, TrainingData
from ftplan.launcher.train.chat import ChatFormat

NO_LOSS: Final = -100
"""The label that torch's cross entropy ignores."""

BATCH: Final = 256
"""Rows given to the tokenizer at once."""


Messages = Sequence[Mapping[str, str]]


class Tokenized(NamedTuple):
    """The tokens of a row, not yet cut, and the label of each."""

    input_ids: list[int]
    labels: list[int]

    def learns(self, cutoff: int) -> bool:
        """Whether a token to learn from is left of the first ``cutoff``."""
        return any(label != NO_LOSS for label in self.labels[:cutoff])


def tokenized(
    data: TrainingData, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, bad: BadRows
) -> Iterator[Tokenized]:
    """The rows of ``data`` in order; those that the chat template refuses go to ``bad``.

    Where the template does not mark what the assistant says, each of its turns becomes a row: what led to it, and it.
    """
    end = tokenizer.eos_token
    if end is None and (data.shape != "messages" or chat.needs_eos):
        message = "the tokenizer has no end-of-sequence token: a model would not learn where to stop"
        raise DataError(message, hint="give its tokenizer_config.json an eos_token", field="tokenizer")
    if data.shape == "messages":
        yield from _marked(data, tokenizer, chat, bad) if chat.marks_assistant else _by_turn(data, tokenizer, chat, bad)
        return
    for rows in _batches(data.rows):
        if data.shape == "text":
            for ids in _ids(tokenizer, [_ended(row["text"], end) for row in rows]):
                yield Tokenized(ids, list(ids))
        else:
            prompts = _ids(tokenizer, [row["prompt"] for row in rows])
            whole = _ids(tokenizer, [_ended(row["prompt"] + row["completion"], end) for row in rows])
            yield from map(_completed, prompts, whole)


def _marked(
    data: TrainingData, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, bad: BadRows
) -> Iterator[Tokenized]:
    located = zip(data.rows, data.places, strict=True)
    while batch := [(row["messages"], place) for row, place in islice(located, BATCH)]:
        try:
            yield from _masked(batch, tokenizer, chat, bad)
        except jinja2.TemplateError:
            # The error of one conversation is that of its batch.
            yield from _masked([one for one in batch if _is_written(*one, tokenizer, chat, bad)], tokenizer, chat, bad)


def _masked(
    batch: Sequence[tuple[Messages, Place]], tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, bad: BadRows
) -> list[Tokenized]:
    """``batch`` with the loss on what the template marks."""
    if not batch:
        return []
    written = tokenizer.apply_chat_template(
        [messages for messages, _ in batch],
        chat_template=chat.text,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    found = []
    for ids, mask, (_, place) in zip(written["input_ids"], written["assistant_masks"], batch, strict=True):
        if any(mask):
            found.append(Tokenized(ids, [token if said else NO_LOSS for token, said in zip(ids, mask, strict=True)]))
        else:
            bad.add(place, "the chat template marks nothing that the assistant says")
    return found


def _is_written(
    messages: Messages, place: Place, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, bad: BadRows
) -> bool:
    try:
        tokenizer.apply_chat_template(messages, chat_template=chat.text, tokenize=False)
    except jinja2.TemplateError as error:
        bad.add(place, f"the chat template refuses it: {error}")
        return False
    return True


def _by_turn(
    data: TrainingData, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, bad: BadRows
) -> Iterator[Tokenized]:
    for row, place in zip(data.rows, data.places, strict=True):
        messages: Messages = row["messages"]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            yield from [_turn(messages[: index + 1], tokenizer, chat) for index in turns]
        except jinja2.TemplateError as error:
            bad.add(place, f"the chat template refuses it: {error}")


def _turn(messages: Messages, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> Tokenized:
    """``messages`` with the loss on the last of them."""

    def ids(said: Messages, **options: Any) -> list[int]:
        written = tokenizer.apply_chat_template(
            list(said), chat_template=chat.text, tokenize=True, return_dict=True, **options
        )
        found: list[int] = written["input_ids"]
        return found

    # Some templates refuse to write nothing, or the system's turn alone.
    prompt = ids(messages[:-1], add_generation_prompt=True) if len(messages) > 1 else []
    return _completed(prompt, ids(messages))


def _completed(prompt: list[int], whole: list[int]) -> Tokenized:
    """``whole`` with the loss on what follows where it parts from ``prompt``: the tokens at the seam may be others."""
    start = common_length(prompt, whole)
    return Tokenized(whole, [NO_LOSS] * start + whole[start:])


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    return ids


def _ended(text: str, end: str) -> str:
    return text if text.endswith(end) else text + end


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
