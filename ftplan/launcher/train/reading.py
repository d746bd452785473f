"""The rows of a job as the training process reads them: local files, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from ftplan.errors import DataError
from ftplan.launcher import data
from ftplan.launcher.data import TrainingData
from ftplan.launcher.data_files import Located
from ftplan.launcher.job import DescribedSet, TrainJob


def read(job: TrainJob) -> TrainingData:
    """The rows of ``job``; raises DataError for data that cannot be used."""
    return data.load(job.data, seed=job.seed, hub=_rows_of_hub)


@cache
def hub_dataset(wanted: DescribedSet) -> Any:
    """The `datasets.Dataset` of a set of the hub, loaded once; raises DataError. Code that comes with it never runs."""
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
