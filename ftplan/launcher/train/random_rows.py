"""Random tokens in the columns that TRL makes of real data, so that they need no preparation."""

from __future__ import annotations

import torch
from datasets import Dataset

from ftplan.launcher.job import TrainJob
from ftplan.spec import RunConfig


def random_rows(job: TrainJob, vocabulary: int) -> Dataset:
    """As many rows as the steps of ``job`` take, of ``seq_len`` tokens each.

    Where batches carry a mask, every second row is shorter, which pads it when rows are taken in order. A packed row
    holds two samples.
    """
    config, count = job.config, job.global_batch * (job.max_steps or 1)
    distinct = 2 * config.micro_batch
    generator = torch.Generator().manual_seed(job.seed)
    ids = torch.randint(vocabulary, (distinct, config.seq_len), generator=generator).tolist()
    rows = [row[: _length(config, index)] for index, row in enumerate(ids)]
    columns = {"input_ids": rows, "labels": rows}
    if config.packing:
        columns["seq_lengths"] = [_samples(config.seq_len)] * distinct
    return Dataset.from_dict(columns).select([index % distinct for index in range(count)])


def _length(config: RunConfig, index: int) -> int:
    padded = config.padding and not config.packing and config.micro_batch > 1 and index % 2 == 1
    return max(1, config.seq_len - max(1, config.seq_len // 16)) if padded else config.seq_len


def _samples(seq_len: int) -> list[int]:
    """The lengths of the samples in a packed row."""
    first = seq_len // 2
    return [first, seq_len - first] if first else [seq_len]
