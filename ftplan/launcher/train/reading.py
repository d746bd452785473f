"""The rows of a job as the training process reads them: local files, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.launcher import data
from ftplan.launcher.data import TrainingData
from ftplan.launcher.data_files import Located
from ftplan.launcher.job import DescribedSet, TrainJob
from ftplan.launcher.train.chat import ChatFormat


def read(job: TrainJob, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> TrainingData:
    """The rows of ``job``; if they are conversations, ``tokenizer`` takes up the template they are written with.

    Raises DataError for data that cannot be used.
    """
    rows = data.load(job.data, seed=job.seed, hub=_rows_of_hub)
    if rows.shape == "messages":
        chat.adopt(tokenizer)
    return rows


def hub_dataset(wanted: DescribedSet) -> Any:
    """The `datasets.Dataset` of a set of the hub; code that comes with it is never run. Raises DataError."""
    import datasets  # a second to import, and few jobs need it to read

    try:
        return datasets.load_dataset(
            wanted.hub, name=wanted.hub_subset, data_dir=wanted.hub_folder, split=wanted.hub_split
        )
    except Exception as error:
        # The library raises errors of its own, of the hub's client and of the network, with no base in common.
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        message = f"the data set {wanted.hub} (split {wanted.hub_split}) could not be had from the hub: {reason}"
        hint = "is this machine online, and the name right? local JSON or JSON Lines files need no hub"
        raise DataError(message, hint=hint, field="data") from error


def _rows_of_hub(wanted: DescribedSet) -> Iterator[Located]:
    return (Located(row, number) for number, row in enumerate(hub_dataset(wanted), start=1))
