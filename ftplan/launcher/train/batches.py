"""Batches that fit: by rows and tokens, and halved where memory runs out all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ftplan.launcher.failures import OUT_OF_MEMORY, kind_of

_T = TypeVar("_T")
_R = TypeVar("_R")


def batches(lengths: Sequence[int], max_rows: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like ``lengths``, longest first: at most so many rows, and tokens with padding.

    A row that is too long by itself is alone. The longest first: what does not fit shows at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def halving(work: Callable[[Sequence[_T]], list[_R]], batch: Sequence[_T]) -> list[_R]:
    """``work`` on ``batch``, or on its halves one after the other if memory runs out; a single row is not halved."""
    try:
        return work(batch)
    except RuntimeError as error:
        if len(batch) == 1 or kind_of(error) not in OUT_OF_MEMORY:
            raise
    # Only here, after the exception and what its frames held are gone, is the memory free again.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return halving(work, batch[:middle]) + halving(work, batch[middle:])
