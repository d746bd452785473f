"""The global batch, kept exactly: micro-batch x accumulation x ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ftplan.errors import BatchError


def check_global_batch(global_batch: int, ranks: int) -> int:
    """Samples a rank takes in one optimizer step; raises BatchError with the nearest two batches that split."""
    if global_batch % ranks == 0:
        return global_batch // ranks
    below = global_batch // ranks * ranks
    nearest = [below, below + ranks] if below else [ranks]
    raise BatchError(f"a global batch of {global_batch} does not split evenly over {ranks} ranks", nearest=nearest)


def splits(samples_per_rank: int, largest: int = 64) -> Iterator[tuple[int, int]]:
    """Every (micro_batch, accumulation) whose product is ``samples_per_rank``, largest micro-batch first."""
    return iter(_splits(samples_per_rank, largest))


@cache
def _splits(samples_per_rank: int, largest: int) -> tuple[tuple[int, int], ...]:
    top = min(samples_per_rank, largest)
    return tuple((micro, samples_per_rank // micro) for micro in range(top, 0, -1) if samples_per_rank % micro == 0)
