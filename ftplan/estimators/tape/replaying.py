"""A run's allocations as a stream, for the simulated allocator: loading, a few steps, each with every layer.

What a card's allocator reserves depends on the order of sizes, not on their sums. So this records the program with all
layers of the model, which takes a tenth of a second, and replays it; the search does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from ftplan.estimators import states
from ftplan.estimators.sharding import offloads_optimizer, zero3_fetching
from ftplan.estimators.tape.build import options_of, targets_of
from ftplan.estimators.tape.collectives import Collectives
from ftplan.estimators.tape.kernels import rule_bytes
from ftplan.estimators.tape.loading import load, trainables
from ftplan.estimators.tape.log import Log
from ftplan.estimators.tape.machine import Reduction
from ftplan.estimators.tape.modules import Options
from ftplan.estimators.tape.moments import Batch
from ftplan.estimators.tape.partitioning import Partitioning
from ftplan.estimators.tape.scattering import Fetches, Scattering
from ftplan.estimators.tape.sizes import COMPLETE, PRODUCT, WITH_BIAS, Event, Mark, Size
from ftplan.estimators.tape.step import END, EVALUATION, LOSS, LOSS_BACKWARD, Recorded, record
from ftplan.estimators.trace import stream as simulated
from ftplan.estimators.trace.addresses import usual_order
from ftplan.estimators.trace.replay import needed, replay
from ftplan.estimators.workload import FP32, Workload
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.runtime import runtime_figure

STEPS: Final = 4
"""Optimizer states are there from the second step on; under a limit runs were seen to fail in the third."""

ZERO3_STEPS: Final = 3
"""The first records the order of modules; the others are alike, and long: every module gathers and releases."""

MICRO_BATCHES: Final = 3
"""Those of an accumulation that are replayed: the others do what the second does."""

RESOLUTION: Final = 0.003
"""Of the smallest limit, as a part of the peak."""

BUCKET: Final = 25 << 20
"""DDP's buckets (torch/nn/parallel/distributed.py, bucket_cap_mb)."""


def replayable(work: Workload) -> bool:
    """Whether the stream of a configuration is known."""
    return not work.on_cpu


def replayed(work: Workload, gpu: GpuProfile, room: int) -> tuple[int, int]:
    """(bytes reserved with room to spare, bytes that the allocator needs, see `needed`) of the worst rank on ``gpu``.

    How a script of its own loads its model is not known: what is said to be reserved goes by the stack's usual way,
    what is needed by the way that needs least to load.
    """
    told = [_replayed(work, gpu, room, last=last) for last in (False, True)[: 1 + _ranks_differ(work)]]
    return max(reserved for reserved, _ in told), max(need for _, need in told)


def _ranks_differ(work: Workload) -> bool:
    """Whether the last rank's partition of the gradients stands longer than the first's."""
    return work.zero_stage in (1, 2) and work.world > 1 and not offloads_optimizer(work)


def _replayed(work: Workload, gpu: GpuProfile, room: int, *, last: bool) -> tuple[int, int]:
    expandable = work.config.expandable_segments
    on_device = bool(work.zero_stage) or (work.stack.builds_on_device and (work.quantized or work.is_fsdp))
    usual = run_events(work, gpu, builds_on_device=on_device, last=last)
    events = usual
    if work.zero_stage == 3:  # which loads in one way only
        events = [event for event in usual if event.kind is not simulated.Kind.RESET_PEAK]
    elif on_device:
        events = run_events(work, gpu, last=last)
    order = usual_order(work.config)
    reserved = replay(usual, expandable_segments=expandable, addresses=order).peak_reserved_bytes
    margin = runtime_figure("replay_margin", "expandable" if expandable else "default").value
    return reserved, needed(
        events, expandable_segments=expandable, resolution=RESOLUTION, margin=margin, room_bytes=room
    )


def run_events(
    work: Workload, gpu: GpuProfile, *, builds_on_device: bool = False, last: bool = False
) -> list[simulated.Event]:
    """Every allocation and release of loading and a few steps; see `loading.load` for ``builds_on_device``.

    Under ZeRO that says whether the trained weights are made flat there. Peaks count from the end of loading then.
    ``last``: of the last rank, which under ZeRO-1 and 2 differs from the first.
    """
    log = Log()
    trained = load(log, work, builds_on_device=builds_on_device and not work.zero_stage)
    log.empty_cache()
    steps = _Steps(log, work, gpu, last=last)
    if steps.partitioning is not None:
        steps.partitioning.flatten(trained, on_device=builds_on_device)
    if builds_on_device:
        log.events.append(simulated.Event(simulated.Kind.RESET_PEAK))
    steps.run()
    return log.events


class _Steps:
    """Writes the steps of a run into a log."""

    def __init__(self, log: Log, work: Workload, gpu: GpuProfile, *, last: bool) -> None:
        self._log = log
        self._work = work
        self._batch = Batch(work.config.micro_batch, work.config.seq_len)
        self._bytes: dict[Size, int] = {}
        self._gpu = gpu
        self._products: set[Mark] = set()
        self._trainables = trainables(work)
        self._options = options_of(work)
        self._collectives = Collectives(work, self._options)
        self.partitioning: Partitioning | Scattering | None = None
        self._fetches: Fetches | None = None
        if work.zero_stage:
            self._options = replace(self._options, reduction=Reduction("tensor", element=0))
        if work.zero_stage == 3:
            self.partitioning = Scattering(log, work, self._trainables)
            self._fetches = Fetches(log, zero3_fetching(work, lingers=True), overlaps=work.config.zero_overlap)
        elif work.zero_stage:
            self.partitioning = Partitioning(log, work, self._trainables, last=last)

    def run(self) -> None:
        """All steps; DDP makes its buckets anew once it knows the order of gradients."""
        log, ddp = self._log, self._work.config.sharding == "ddp"
        total = sum(self._trainables) * self._work.gradient_bytes
        first_buckets = log.allocate_all([total] if ddp else [])
        micro_batches = min(self._work.config.accumulation, MICRO_BATCHES)
        for step in range(ZERO3_STEPS if self._work.zero_stage == 3 else STEPS):
            if step == 1 and ddp:
                log.free(first_buckets)
                log.allocate_all([BUCKET] * (total // BUCKET) + [total % BUCKET])
            gradients: list[int] = []
            for index in range(micro_batches):
                if self.partitioning is not None:
                    self.partitioning.begin(first=index == 0, last=index == micro_batches - 1)
                gradients += self._micro_batch(accumulates=index > 0)
            if self.partitioning is not None:
                self.partitioning.step(first=step == 0)
            elif not offloads_optimizer(self._work):
                self._optimizer(first=step == 0)
            log.free(gradients)

    def _micro_batch(self, *, accumulates: bool) -> list[int]:
        """Forward and backward; returns the keys of the gradients, which stay."""
        work, log = self._work, self._log
        targets = work.config.lora_targets if work.config.trains_lora else ""
        recorded = _whole(work.model, replace(self._options, accumulates=accumulates), targets)
        partitioning = self.partitioning
        keys: dict[int, list[int]] = {}
        held: list[int] = []
        ended = False
        progress = _Progress(self._fetches)
        for event in recorded.events:
            if isinstance(event, Mark):
                if event.phase == EVALUATION:
                    break
                progress.marked(event.phase)
                if event.phase == COMPLETE and partitioning is not None:
                    partitioning.arrived(event.place * work.gradient_bytes)
                elif event.phase == END and partitioning is not None:
                    partitioning.end()
                ended = ended or event.phase == END
                if event.phase in (PRODUCT, WITH_BIAS) and event not in self._products:
                    self._products.add(event)
                    log.allocate(states.workspace_block(self._gpu, with_bias=event.phase == WITH_BIAS))
                continue
            progress.at(event.place)
            if event.size is None:
                gone = keys.pop(event.key, [])
                if ended:
                    held += gone
                elif partitioning is None or not partitioning.takes(gone):
                    log.free(gone)
            else:
                keys[event.key] = self._collectives.allocate(log, event.name, self._size(event))
        return held

    def _size(self, event: Event) -> int:
        size = event.size
        assert size is not None
        known = self._bytes.get(size)
        if known is None:
            known = self._bytes[size] = round(self._batch.bytes(size))
        return known + (rule_bytes(event.rule, self._batch.tokens) if event.rule is not None else 0)

    def _optimizer(self, *, first: bool) -> None:
        """States at the first step, and what each step makes in passing."""
        work = self._work
        cost = states.optimizer_cost(work.config.optimizer)
        sizes = [-(-each * work.trainable_bytes // work.optimizer_shards) for each in self._trainables]
        if first and not cost.paged:
            self._states(sizes, cost)
        if cost.temporary:
            self._log.passing(sizes)
        elif cost.factored:
            for size in sizes:
                self._log.passing([size // work.trainable_bytes * FP32] * states.adafactor_copies(work))

    def _states(self, sizes: Sequence[int], cost: states.OptimizerCost) -> None:
        work = self._work
        for size in sizes:
            elements = size // work.trainable_bytes
            if cost.factored:
                made = [states.factored_bytes(elements)]
            elif cost.state_is_8bit and elements == work.model.embedding_params:
                made = [elements * FP32] * cost.moments
            elif cost.state_is_8bit:
                made = [elements, -(-elements // 256) * FP32] * cost.moments
            else:
                made = [size] * cost.moments
            self._log.allocate_all(each for each in made if each)


class _Progress:
    """Tells ZeRO-3's fetching how far a micro-batch has come; does nothing without."""

    def __init__(self, fetches: Fetches | None) -> None:
        self._fetches = fetches
        self._place = 0
        self._backward = False
        if fetches is not None:
            fetches.begin()
            fetches.reach("embedding")

    def marked(self, phase: str) -> None:
        """A phase of the program begins."""
        if self._fetches is None:
            return
        if phase == LOSS:
            self._fetches.reach("head")
        elif phase == LOSS_BACKWARD:
            self._backward = True
            if self._fetches.external_head:
                self._fetches.reach("head backward")
        elif phase == END:
            self._fetches.reach("end")

    def at(self, place: int) -> None:
        """Something is allocated or freed in that part of the model."""
        if self._fetches is None or place == self._place:
            return
        if not self._backward:
            self._fetches.reach("forward", place)
        else:
            self._fetches.reach("backward", self._place)
            self._fetches.reach("head backward")
            self._fetches.reach("recompute", place)
        self._place = place


@lru_cache(maxsize=8)
def _whole(model: ModelProfile, options: Options, targets: str) -> Recorded:
    """The program with every layer of the model."""
    found = {group.layer: targets_of(model.model_type, group.layer, targets, options.rank) for group in model.groups}
    return record(model, options, found, whole=True)
