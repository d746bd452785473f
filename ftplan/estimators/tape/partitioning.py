"""Gradients under DeepSpeed's ZeRO 1 and 2: buckets, a partition of its own for each rank, and the flat step.

Stages 1 and 2 train views of one flat tensor. As gradients come they are copied into buckets, of which one is reduced
on a stream of its own while the other fills; one that is larger than a bucket stays where it is until the next comes.
What belongs to the rank goes on to its partition (or, offloaded, to the host), anything else is dropped, by stage 1 at
the step. Without overlap_comm there is one bucket, reduced on the kernels' stream, and stage 1 begins with the first
parameter's gradient when the backward has ended. Names and lines are of deepspeed 0.19.8,
runtime/zero/stage_1_and_2.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from ftplan.estimators import states
from ftplan.estimators.sharding import offloads_optimizer, reduce_bucket
from ftplan.estimators.tape.log import COMPUTE, Log
from ftplan.estimators.workload import FP32, Workload
from ftplan.units import ceil_div

REDUCTION: Final = 1
"""The stream on which buckets are reduced."""

FP64: Final = 8
"""Of the norm of a gradient (get_norm_dtype)."""


class _Reducing(NamedTuple):
    """A gradient in the bucket: where it begins among the trained elements; ``key`` if it lies outside the buffer."""

    begin: int
    elements: int
    key: int | None


class Partitioning:
    """Writes into a log what one rank, the first or the ``last``, allocates for gradients and the optimizer's step.

    Gradients come from the end of the model, so that the last rank has its partition from the first of them on.
    """

    def __init__(self, log: Log, work: Workload, trainables: Sequence[int], *, last: bool = False) -> None:
        self._log = log
        self._work = work
        self._element = work.gradient_bytes
        self._offloads = offloads_optimizer(work)
        self._capacity = reduce_bucket(work)
        self._stream = REDUCTION if work.config.zero_overlap else COMPUTE
        self._waits = work.zero_stage == 1 and not work.config.zero_overlap
        self._total = sum(trainables)
        self._share = ceil_div(self._total, work.world)
        self._begin = (work.world - 1) * self._share if last else 0
        begins = accumulate(trainables, initial=0)
        self._mine = [each for each, begin in zip(trainables, begins, strict=False) if self._is_mine(begin, each)]
        self._buffers: list[int] = []
        self._bucket: list[_Reducing] = []
        self._to_come = 0
        self._taking: int | None = None
        self._taken: list[int] = []
        self._waiting: list[_Reducing] = []
        self._outside: list[int] = []
        self._partition: list[int] = []
        self._reduces = self._holds = False

    def flatten(self, weights: Sequence[int], *, on_device: bool) -> None:
        """Make the trained ``weights`` one tensor, where a card has room for both ``on_device``, and the rank's copies.

        Lines 441 to 560 and initialize_optimizer_states.
        """
        log = self._log
        log.empty_cache()
        if not on_device:
            log.free(weights)
            log.empty_cache()
        log.allocate(self._total * self._element)
        if on_device:
            log.free(weights)
        mine = log.allocate(self._share * self._element)
        if not self._offloads:
            log.allocate(self._share * FP32)
        log.free([mine])
        log.empty_cache()
        if self._offloads:
            log.allocate(states.largest_trainable(self._work) * self._element)
        else:
            log.passing([self._share * FP32])
        if self._work.stack.empties_cache:
            log.empty_cache()

    def begin(self, *, first: bool, last: bool) -> None:
        """A micro-batch begins, the ``first`` or ``last`` of an accumulation: stage 1 reduces in the last only.

        Gradients of the first stay where others are added to them, or all are reduced at the end.
        """
        self._to_come = self._total
        self._reduces = last or self._work.zero_stage == 2
        self._holds = first and (self._waits or not self._reduces)

    def arrived(self, size: int) -> None:
        """A gradient of ``size`` bytes is complete; what of that size is freed next is its memory."""
        elements = size // self._element
        self._to_come -= elements
        self._taking = None
        if not self._buffers:
            count = 2 if self._work.config.zero_overlap else 1
            self._buffers = self._log.allocate_all([self._capacity * self._element] * count)
        if self._waits or not self._reduces:
            self._taking = size if self._holds else None
            self._waiting += [_Reducing(self._to_come, elements, None)] if self._reduces else []
            return
        if self._joins(elements, self._to_come) and not self._offloads:
            self._taking = size
        self._log.free(self._taken[:1])
        del self._taken[:1]

    def takes(self, keys: Sequence[int]) -> bool:
        """Whether what would be freed is a gradient that stays."""
        if len(keys) != 1 or self._log.size(keys[0]) != self._taking:
            return False
        key, self._taking = keys[0], None
        if self._reduces and not self._waits:
            self._bucket[-1] = self._bucket[-1]._replace(key=key)
        else:
            self._taken.append(key)
        return True

    def end(self) -> None:
        """The backward has ended."""
        if not self._reduces:
            return
        for each, key in reversed(list(zip(self._waiting, self._taken, strict=True))) if self._waits else ():
            if self._joins(each.elements, each.begin) and not self._offloads:
                self._bucket[-1] = each._replace(key=key)
            else:
                self._log.free([key])
        if self._waits:
            self._waiting, self._taken = [], []
        self._reduce()
        self._log.free(self._buffers)
        self._buffers = []

    def step(self, *, first: bool) -> None:
        """Norms, the partition flattened and in fp32, and the optimizer on it (step, get_grad_norm_direct)."""
        if not self._offloads:
            log, work = self._log, self._work
            left = self._share
            for elements in self._mine:
                log.passing([min(elements, left) * FP64])
                left -= elements
            log.free(self._outside)
            self._outside = []
            wide = flat_step(log, work, self._share, self._element, first=first)
            log.free([wide, *self._partition])
            self._partition = []

    def _copy(self) -> None:
        """Slices of several ranks are reduced as one tensor, up to more than a bucket (allreduce_and_scatter)."""
        joined: list[int] = []
        for size in self._slices():
            joined.append(size)
            if sum(joined) > self._capacity:
                self._log.passing([sum(joined) * self._element] if len(joined) > 1 else [], self._stream)
                joined = []
        self._log.passing([sum(joined) * self._element] if len(joined) > 1 else [], self._stream)

    def _slices(self) -> list[int]:
        """Elements of what is in the bucket, by the rank they go to: those of one rank that follow are one."""
        sizes: list[int] = []
        owner: int | None = None
        for each in self._bucket:
            begin, end = each.begin, each.begin + each.elements
            while begin < end:
                rank = max(0, begin // self._share)
                size = min(end, (rank + 1) * self._share) - begin
                if rank == owner:
                    sizes[-1] += size
                else:
                    sizes.append(size)
                owner, begin = rank, begin + size
        return sizes

    def _is_mine(self, begin: int, elements: int) -> bool:
        """Whether a part of a tensor that begins there is the rank's."""
        return begin < self._begin + self._share and begin + elements > self._begin

    def _joins(self, elements: int, begin: int) -> bool:
        """A gradient is copied into the bucket, which is reduced first if it is full; whether it is too large for that.

        Offloaded, one that is too large is cloned.
        """
        if sum(each.elements for each in self._bucket) + elements > self._capacity:
            self._reduce()
        too_large = elements > self._capacity
        key = self._log.allocate(elements * self._element) if too_large and self._offloads else None
        self._bucket.append(_Reducing(begin, elements, key))
        return too_large

    def _reduce(self) -> None:
        """The bucket is reduced, and its gradients go where they belong (reduce_ipg_grads, copy_grads_in_partition)."""
        self._copy()
        for each in self._bucket:
            mine = self._is_mine(each.begin, each.elements)
            if each.key is not None:
                self._log.record(each.key, self._stream)
            if mine and self._offloads:
                self._log.passing([each.elements * FP64], self._stream)
                self._log.passing([each.elements * FP32], self._stream)
            elif mine and not self._partition:
                self._partition = [self._log.allocate(sum(self._mine) * self._element, self._stream)]
            if each.key is not None and (mine or self._work.zero_stage == 2):
                self._log.free([each.key])
            elif each.key is not None:
                self._outside.append(each.key)
        self._bucket = []


def flat_step(log: Log, work: Workload, share: int, element: int, *, first: bool) -> int:
    """The rank's ``share`` of the gradients made flat, then fp32, and the optimizer on them; returns the fp32's key."""
    cost = states.optimizer_cost(work.config.optimizer)
    flat = log.allocate(share * element)
    wide = log.allocate(share * FP32)
    log.free([flat])
    if first and not cost.paged:
        size = states.optimizer_states(work)
        log.allocate_all([ceil_div(size, max(1, cost.moments))] * cost.moments if not cost.factored else [size])
    if cost.temporary:
        log.passing([share * FP32])
    elif cost.factored:
        log.passing([share * FP32] * 2)
    return wide
