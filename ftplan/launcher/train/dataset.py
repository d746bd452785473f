"""The rows of a job as `datasets.Dataset`, in the shape TRL trains on, for the tokenizer at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import datasets
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from ftplan.errors import DataError
from ftplan.launcher import data
from ftplan.launcher.data import TrainingData
from ftplan.launcher.data_files import Located
from ftplan.launcher.job import DataSource

PLAIN_TURNS: Final = {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n### Response:\n", "assistant": "{}\n\n"}
"""How a conversation is written for a tokenizer without a chat template."""


@dataclass(frozen=True)
class Prepared:
    """The data sets, whether the loss is on the assistant's tokens only, and what a user should know about it."""

    train: datasets.Dataset
    evaluation: datasets.Dataset | None
    assistant_only_loss: bool
    note: str = ""


def prepare(source: DataSource, tokenizer: PreTrainedTokenizerBase, seed: int) -> Prepared:
    """Read the data of ``source`` and shape it for ``tokenizer``; raises DataError if it cannot be used."""
    rows, assistant_only, note = _shape(_load(source), tokenizer)
    dataset = datasets.Dataset.from_list(rows)
    if not source.eval_fraction:
        return Prepared(dataset, None, assistant_only, note)
    held_out = max(1, round(len(dataset) * source.eval_fraction))
    if held_out >= len(dataset):
        raise DataError(
            f"{len(dataset)} rows leave none to train on after holding out {held_out}",
            hint="use more data, or a smaller eval fraction",
            field="eval_fraction",
        )
    parts = dataset.train_test_split(test_size=held_out, seed=seed)
    return Prepared(parts["train"], parts["test"], assistant_only, note)


def _load(source: DataSource) -> TrainingData:
    if source.hub is None:
        return data.load(source)
    rows = datasets.load_dataset(source.hub, split=source.hub_split)
    return data.normalise((Located(row, number) for number, row in enumerate(rows, start=1)), source.hub, source.form)


def _shape(given: TrainingData, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Mapping[str, Any]], bool, str]:
    """Rows for TRL, with the loss on what the assistant says wherever that can be told.

    Three ways, best first: a chat template that marks the assistant's part; one that does not, with a row for each of
    the assistant's turns; no chat template, with the same rows in plain text.
    """
    if given.shape != "messages":
        return list(given.rows), False, ""
    if not tokenizer.chat_template:
        note = "the tokenizer has no chat template: conversations are written as '### Instruction / ### Response'"
        return [_plain(row) for row in _turns(given.rows)], False, note
    if _marks_assistant(tokenizer):
        return list(given.rows), True, ""
    note = "the chat template does not mark the assistant's part: each of its turns becomes a row of its own"
    return list(_turns(given.rows)), False, note


def _marks_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    if has_generation_markers(tokenizer.chat_template):
        return True
    try:
        return get_training_chat_template(tokenizer) is not None
    except ValueError:
        # TRL knows no variant of this template with markers.
        return False


def _turns(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """A prompt-completion row, of messages, for every turn of the assistant."""
    for row in rows:
        messages: Sequence[Mapping[str, str]] = row["messages"]
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                yield {"prompt": list(messages[:index]), "completion": [message]}


def _plain(row: Mapping[str, Any]) -> Mapping[str, Any]:
    prompt = "".join(PLAIN_TURNS[message["role"]].format(message["content"]) for message in row["prompt"])
    return {"prompt": prompt, "completion": row["completion"][0]["content"]}
