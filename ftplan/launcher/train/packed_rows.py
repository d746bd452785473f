"""Batches of packed rows, a row of the batch each.

TRL lays the rows of a batch end to end, which flash-attention 2 handles sample by sample. Every other attention gets a
mask of all tokens by all tokens: with 8 rows of 2048 tokens a forward took 2.5 times as long as predicted on an H100,
and 0.7 GB more. Rows that stay rows need a mask of a row by a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ftplan.launcher.train.tokenizing import NO_LOSS


@dataclass(frozen=True)
class PackedRows:
    """Collates packed rows to ``input_ids``, ``labels`` and ``position_ids``, each [rows, longest row].

    Positions begin anew with each sample, which is how attention tells the samples of a row apart; padding is one more
    sample, without loss.
    """

    pad_token: int

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """The batch of ``rows``, which hold ``input_ids``, ``labels`` and the ``seq_lengths`` of their samples."""
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([_filled(row["input_ids"], longest, self.pad_token) for row in rows]),
            "labels": torch.tensor([_filled(row["labels"], longest, NO_LOSS) for row in rows]),
            "position_ids": torch.tensor([_positions(row["seq_lengths"], longest) for row in rows]),
        }


def _filled(values: Sequence[int], length: int, filler: int) -> list[int]:
    return [*values, *[filler] * (length - len(values))]


def _positions(lengths: Sequence[int], length: int) -> list[int]:
    samples = (*lengths, length - sum(lengths))
    return [position for samples_length in samples for position in range(samples_length)]
