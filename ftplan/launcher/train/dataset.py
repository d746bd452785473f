"""The rows of a job as `datasets.Dataset`, tokenized, cut and packed: what the trainer takes as it is."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from ftplan.launcher.data_forms import Shape
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train import token_cache, token_files
from ftplan.launcher.train.chat import ChatFormat, chat_format
from ftplan.launcher.train.token_files import EVALUATION, TRAIN, Manifest, open_rows


@dataclass(frozen=True)
class Prepared:
    """The data sets, with columns ``input_ids`` and ``labels``, and what a user should know about them.

    ``shape`` is that of the rows they were made of; None for random ones.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset | None
    notes: tuple[str, ...] = ()
    shape: Shape | None = None


def prepare(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """The data of ``job``, from its cache if it was tokenized before; raises DataError if it cannot be used.

    Where rows are conversations, ``tokenizer`` takes up the chat template that they are written with.
    """
    chat = chat_format(tokenizer, job.chat_template)
    prepared = _prepared(job, tokenizer, chat)
    if prepared.shape == "messages":
        chat.adopt(tokenizer)
    return prepared


def _prepared(job: TrainJob, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> Prepared:
    if job.data_cache is None:
        return _uncached(job, tokenizer, chat)
    try:
        folder, manifest, mended = token_cache.entry(
            Path(job.data_cache),
            token_cache.key(job, tokenizer, chat),
            lambda folder: token_files.write(job, tokenizer, chat, folder),
        )
    except OSError as error:
        return _uncached(job, tokenizer, chat, f"tokenized data is not cached: {error}")
    return _opened(folder, manifest, *(["a damaged entry of the data cache was made anew"] if mended else []))


def _uncached(job: TrainJob, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, *notes: str) -> Prepared:
    with tempfile.TemporaryDirectory(prefix="ftplan-data-") as name:
        folder = Path(name)
        # What is mapped into memory outlives its name.
        return _opened(folder, token_files.write(job, tokenizer, chat, folder), *notes)


def _opened(folder: Path, manifest: Manifest, *notes: str) -> Prepared:
    train = open_rows(folder, TRAIN)
    assert train is not None, "every manifest has rows to train on"
    return Prepared(train, open_rows(folder, EVALUATION), (*notes, *manifest.notes), manifest.shape)
