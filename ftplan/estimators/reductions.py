"""Scratch memory of sums on a card: what a reduction over rows takes while it runs."""

from __future__ import annotations

from typing import Final

from ftplan.units import ceil_div

FP32: Final = 4
SEMAPHORE: Final = 4


def reduction_scratch(
    rows: int, columns: int, element: int, multiprocessors: int = 132, threads_per_multiprocessor: int = 2048
) -> tuple[int, ...]:
    """Global buffers of a sum over ``rows`` of ``columns`` contiguous columns (ATen/native/cuda/Reduce.cuh).

    Where too few columns keep the card busy, several blocks share one and meet in global memory: fp32 partial sums of
    every thread, and a semaphore for each block.
    """
    vector = next(each for each in (4, 2, 1) if columns % each == 0 and element * each <= 16)
    threads = 512 // vector
    width = min(_last_power_of_two(columns // vector), 32)
    height = min(_last_power_of_two(rows), threads // width)
    width = min(_last_power_of_two(columns // vector), threads // height)
    values = ceil_div(rows, height)
    grid = ceil_div(columns // vector, width)
    target = multiprocessors * (threads_per_multiprocessor // (width * height))
    if rows < height * 16 or values < 256 or grid > target:
        return ()
    blocks = max(min(ceil_div(target, grid), ceil_div(values, 16)), ceil_div(values, 256))
    return (FP32 * columns * blocks * width * vector, SEMAPHORE * grid) if blocks > 1 else ()


def _last_power_of_two(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)
