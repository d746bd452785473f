"""ZeRO-3's parameters and gradients as they are allocated: gathered module by module, scattered bucket by bucket.

Parameters are gathered on a stream of their own and gradients reduced on another, without overlap_comm on that of the
kernels. One bucket stands from the start; a
gradient that is larger stays where it is until the next one comes. Every parameter's part of the gradient has a place
in one flat tensor, which the step converts to fp32. Names and lines are of deepspeed 0.19.8, runtime/zero/stage3.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftplan.estimators.fetching import Coordinator
from ftplan.estimators.module_order import Fetching, Kind, order_of
from ftplan.estimators.sharding import offloads_optimizer, offloads_parameters, reduce_bucket
from ftplan.estimators.tape.log import COMPUTE, GATHERS, Log
from ftplan.estimators.tape.partitioning import FP64, flat_step
from ftplan.estimators.workload import FP32, Workload
from ftplan.units import ceil_div

REDUCTION = 2
"""The stream on which gradients are reduced."""


class Fetches:
    """Runs a coordinator beside a micro-batch, as far as that has come.

    ``external_head``: the head's weight belongs to the whole model, whose backward begins before that of the logits.
    """

    def __init__(self, log: Log, fetching: Fetching, *, overlaps: bool = True) -> None:
        self.external_head = fetching.external_head
        self._stream = GATHERS if overlaps else COMPUTE
        self._log = log
        self._sections = order_of(fetching).sections
        self._coordinator = Coordinator(fetching, self)
        self._done = 0
        self._records = True

    def begin(self) -> None:
        """A micro-batch begins."""
        self._coordinator.begin(records=self._records)
        self._records = False
        self._done = 0

    def reach(self, kind: Kind, place: int = 0) -> None:
        """Run all sections up to this one."""
        sections = self._sections
        last = next((n for n, each in enumerate(sections) if each.kind == kind and each.place == place), -1)
        while self._done <= last:
            self._coordinator.run(sections[self._done])
            self._done += 1

    def allocate(self, size: int, *, among_kernels: bool = False) -> int:
        """Allocate on the stream of gathers, or that of the kernels."""
        return self._log.allocate(size, COMPUTE if among_kernels else self._stream)

    def release(self, key: int) -> None:
        """Free what the kernels may still read (partition_parameters.py, free_param)."""
        self._log.record(key, COMPUTE)
        self._log.free([key])


class Scattering:
    """Writes into a log what a rank allocates for its part of the gradients and for the optimizer's step."""

    def __init__(self, log: Log, work: Workload, trainables: Sequence[int]) -> None:
        self._log = log
        self._work = work
        self._element = work.gradient_bytes
        self._capacity = reduce_bucket(work)
        self._stream = REDUCTION if work.config.zero_overlap else COMPUTE
        self._parts = [ceil_div(each, work.world) for each in trainables]
        self._share = sum(self._parts)
        self._filled = 0
        self._bucket: list[tuple[int, int | None]] = []
        self._taking: int | None = None

    def flatten(self, weights: Sequence[int], *, on_device: bool) -> None:
        """Make the trained ``weights`` one tensor, with a master copy; the bucket and the flat gradients."""
        del on_device
        log, work = self._log, self._work
        if not offloads_parameters(work):
            log.free(weights)
            log.empty_cache()
            log.allocate(self._share * work.trainable_bytes)
        if not offloads_optimizer(work):
            wide = log.allocate(self._share * FP32)
            log.allocate(self._share * FP32)
            log.free([wide])
            log.passing([self._share * FP32])
        log.allocate(self._capacity * work.compute_bytes)
        if not offloads_optimizer(work):
            log.allocate(self._share * work.compute_bytes)
        if work.stack.empties_cache:
            log.empty_cache()

    def begin(self, *, first: bool, last: bool) -> None:
        """A micro-batch begins."""

    def arrived(self, size: int) -> None:
        """A gradient of ``size`` bytes is complete; what of that size is freed next is its memory."""
        elements = size // self._element
        if self._bucket and self._filled + elements > self._capacity:
            self._reduce()
        self._taking = size if self._filled + elements > self._capacity else None
        self._bucket.append((elements, None))
        self._filled += elements

    def takes(self, keys: Sequence[int]) -> bool:
        """Whether what would be freed is a gradient that stays."""
        if len(keys) != 1 or self._log.size(keys[0]) != self._taking:
            return False
        self._taking = None
        self._bucket[-1] = self._bucket[-1][0], keys[0]
        return True

    def end(self) -> None:
        """The backward has ended."""
        self._reduce()

    def step(self, *, first: bool) -> None:
        """Norms, the flat gradients in fp32, and the optimizer on them (step, _prepare_fp32_grad_for_sub_group)."""
        log, work = self._log, self._work
        if offloads_optimizer(work):
            return
        for each in self._parts:
            log.passing([each * FP64])
        log.free([flat_step(log, work, self._share, work.compute_bytes, first=first)])

    def _reduce(self) -> None:
        """The bucket is reduced, several gradients as one tensor; offloaded parts go by way of the device."""
        log, work = self._log, self._work
        element = work.compute_bytes
        joined = [log.allocate(self._filled * element, self._stream)] if len(self._bucket) > 1 else []
        for elements, key in self._bucket:
            part = ceil_div(elements, work.world)
            if offloads_optimizer(work):
                back = log.allocate(part * element, self._stream)
                log.passing([part * FP64], self._stream)
                log.passing([part * FP32], self._stream)
                log.free([back])
            if key is not None:
                log.record(key, self._stream)
                log.free([key])
        log.free(joined)
        self._bucket = []
        self._filled = 0
