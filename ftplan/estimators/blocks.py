"""What the CUDA caching allocator counts as allocated for tensors: their blocks, which can be larger than they are.

Rules from c10/cuda/CUDACachingAllocator.cpp and AllocatorConfig.h: sizes round to 512 bytes; up to 1 MiB comes from
segments of 2 MiB, below 10 MiB from segments of 20 MiB, the rest from segments of their own, rounded to 2 MiB; the best
fitting free block is taken; what is left of a large block is split off only if it exceeds 1 MiB. Replaying a model's
weights and adapters gives the measured allocation of every unquantized run in ``benchmarks/data`` to a kibibyte:
Qwen2.5-7B takes 0.4 % more than its elements, because a matrix of 129.5 MiB gets a block of 130 MiB.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from ftplan.profiles.model_schema import LayerProfile, ModelProfile
from ftplan.units import MIB, ceil_div, round_up

ROUNDING: Final = 512
SMALL: Final = MIB
SMALL_SEGMENT: Final = 2 * MIB
MEDIUM: Final = 10 * MIB
MEDIUM_SEGMENT: Final = 20 * MIB
SEGMENT_ROUNDING: Final = 2 * MIB


class _Blocks:
    """Tensors laid into segments, none of them ever freed."""

    def __init__(self) -> None:
        self.allocated = 0
        self._free: dict[bool, list[int]] = {True: [], False: []}

    def add(self, size: int) -> None:
        wanted = round_up(max(size, 1), ROUNDING)
        small = wanted <= SMALL
        free = self._free[small]
        index = bisect_left(free, wanted)
        block = free.pop(index) if index < len(free) else _segment(wanted)
        rest = block - wanted
        if rest > (0 if small else SMALL):
            insort(free, rest)
            block = wanted
        self.allocated += block


def rounding(size: float) -> int:
    """Bytes that a block of its own holds beyond a tensor of ``size`` bytes, where what is left is too small to split.

    Large tensors get segments of multiples of 2 MiB, of which up to 1 MiB stays with the block; smaller ones share
    segments, and lose little.
    """
    if size < MEDIUM:
        return 0
    rest = -int(size) % SEGMENT_ROUNDING
    return rest if rest <= SMALL else 0


def _segment(size: int) -> int:
    if size <= SMALL:
        return SMALL_SEGMENT
    return MEDIUM_SEGMENT if size < MEDIUM else round_up(size, SEGMENT_ROUNDING)


@lru_cache(maxsize=1024)
def unsplit_bytes(model: ModelProfile, element: float, packed_element: float, shards: int) -> int:
    """Bytes that the blocks of all weights hold beyond the weights themselves, on one rank.

    ``element`` is the bytes of an element, ``packed_element`` that of linear weights that 4-bit loading packs; each
    tensor is split over ``shards`` ranks.
    """
    blocks, exact = _Blocks(), 0
    for elements, packs in tensors(model):
        size = ceil_div(round(elements * (packed_element if packs else element)), shards)
        blocks.add(size)
        exact += size
    return blocks.allocated - exact


def tensors(model: ModelProfile) -> Iterator[tuple[int, bool]]:
    """(elements, packed in 4-bit) of every weight in the order modules are made."""
    yield model.embedding_params, False
    for layer in model.layers:
        yield from layer_tensors(layer)
    if not model.tied:
        yield model.embedding_params, False


def layer_tensors(layer: LayerProfile) -> Iterator[tuple[int, bool]]:
    """(elements, packed in 4-bit) of every weight of a layer."""
    for linear in layer.linears:
        yield linear.weight_params, linear.is_linear and linear.quantizable
        if linear.bias:
            yield linear.out_features, False
    experts = layer.mlp.experts
    for weight in experts.weights if experts else ():
        yield weight.weight_params * (experts.count if experts else 0), False
    for norm in layer.norms:
        yield norm.params, False
