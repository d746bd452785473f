"""Random tokens as a data set: the same for every run of a case."""

from __future__ import annotations

from typing import Final

import torch
from transformers import PretrainedConfig

from benchmarks.measuring.case import Case

SPECIAL: Final = 5
"""Ids below are left out."""
LARGEST: Final = 30_000


class Tokens:
    """``rows`` samples of the case's length; padded ones end in 7, 14 or 21 masked tokens, packed ones hold two."""

    def __init__(self, case: Case, vocabulary: int, rows: int, *, packing: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(SPECIAL, min(vocabulary, LARGEST), (rows, case.seq), generator=generator)
        self._padded = case.pad
        self._packed = packing

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self._ids[index]
        row = {"input_ids": ids, "labels": ids.clone()}
        if self._padded:
            mask = torch.ones_like(ids)
            mask[-7 * (1 + index % 3) :] = 0
            row["attention_mask"] = mask
        if self._packed:
            half = len(ids) // 2
            row["position_ids"] = torch.cat([torch.arange(half), torch.arange(len(ids) - half)])
        return row


def vocabulary_of(config: PretrainedConfig) -> int:
    """Tokens of the text model."""
    return int(config.get_text_config().vocab_size)


def training_tokens(case: Case, config: PretrainedConfig, world_size: int) -> Tokens:
    """As many samples as the steps take."""
    rows = case.steps * case.micro * case.accum * world_size
    return Tokens(case, vocabulary_of(config), rows, packing=case.packing)


def evaluation_tokens(case: Case, config: PretrainedConfig, world_size: int) -> Tokens:
    """Two micro-batches for each rank."""
    return Tokens(case, vocabulary_of(config), case.micro * 2 * world_size, packing=False)
