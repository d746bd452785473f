"""The global batch, kept exactly: micro-batch x accumulation x ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ftplan.errors import BatchError, InputError
from ftplan.spec import PlanRequest


def check_batch(request: PlanRequest) -> None:
    """Raise BatchError if the global batch does not split over the ranks, InputError if a pinned part does not."""
    ranks = 1 if request.pins.get("sharding") == "none" else request.inventory.world_size
    check_pinned_split(check_global_batch(request.global_batch, ranks), request.pins)


def check_global_batch(global_batch: int, ranks: int) -> int:
    """Samples a rank takes in one optimizer step; raises BatchError with the nearest two batches that split."""
    if global_batch % ranks == 0:
        return global_batch // ranks
    below = global_batch // ranks * ranks
    nearest = [below, below + ranks] if below else [ranks]
    raise BatchError(f"a global batch of {global_batch} does not split evenly over {ranks} ranks", nearest=nearest)


def check_pinned_split(samples_per_rank: int, pins: Mapping[str, Any]) -> None:
    """Raise InputError if a pinned micro-batch or accumulation cannot make up ``samples_per_rank`` exactly."""
    given = {field: pins[field] for field in ("micro_batch", "accumulation") if field in pins}
    product = math.prod(given.values())
    exact = product == samples_per_rank if len(given) == 2 else samples_per_rank % product == 0
    if exact:
        return
    shown = " x ".join(f"{field} {value}" for field, value in given.items())
    divisors = [str(number) for number in range(1, samples_per_rank + 1) if samples_per_rank % number == 0]
    hint = f"use one of {', '.join(divisors[:12])}" if len(given) == 1 else f"their product must be {samples_per_rank}"
    message = f"{shown} does not make up the {samples_per_rank} samples that a rank takes in a step"
    raise InputError(message, hint=hint, field=next(iter(given)))


def splits(samples_per_rank: int, largest: int = 64) -> Iterator[tuple[int, int]]:
    """Every (micro_batch, accumulation) whose product is ``samples_per_rank``, largest micro-batch first."""
    return iter(_splits(samples_per_rank, largest))


@cache
def _splits(samples_per_rank: int, largest: int) -> tuple[tuple[int, int], ...]:
    top = min(samples_per_rank, largest)
    return tuple((micro, samples_per_rank // micro) for micro in range(top, 0, -1) if samples_per_rank % micro == 0)
