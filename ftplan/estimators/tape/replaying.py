"""A run's allocations as a stream, for the simulated allocator: loading, a few steps, each with every layer.

What a card's allocator reserves depends on the order of sizes, not on their sums. So this records the program with all
layers of the model, which takes a tenth of a second, and replays it; the search does without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from ftplan.estimators import states
from ftplan.estimators.blocks import tensors
from ftplan.estimators.tape.build import options_of, targets_of
from ftplan.estimators.tape.kernels import rule_bytes
from ftplan.estimators.tape.modules import Options
from ftplan.estimators.tape.moments import Batch
from ftplan.estimators.tape.sizes import PRODUCT, Event, Mark, Size
from ftplan.estimators.tape.step import END, EVALUATION, Recorded, record
from ftplan.estimators.trace import stream as simulated
from ftplan.estimators.trace.replay import replay, smallest_limit
from ftplan.estimators.trace.stream import Kind
from ftplan.estimators.workload import FP32, Workload
from ftplan.profiles.runtime import runtime_figure
from ftplan.profiles.schema import GpuProfile, ModelProfile

STEPS: Final = 4
"""Optimizer states are there from the second step on; under a limit runs were seen to fail in the third."""

MICRO_BATCHES: Final = 3
"""Those of an accumulation that are replayed: the others do what the second does."""

RESOLUTION: Final = 0.003
"""Of the smallest limit, as a part of the peak."""

BUCKET: Final = 25 << 20
"""DDP's buckets (torch/nn/parallel/distributed.py, bucket_cap_mb)."""


def replayable(work: Workload) -> bool:
    """Whether the stream of a configuration is known: what sharded runs hold on side streams and free late is not."""
    return not work.on_cpu and not work.zero_stage and not work.is_fsdp


def replayed(work: Workload, gpu: GpuProfile, room: int) -> tuple[int, int]:
    """(bytes reserved with room to spare, bytes that the allocator needs) of a run on ``gpu``.

    Where ``room`` holds what is reserved, that is needed; otherwise the least under which the run survives, with a
    margin for the addresses that the driver gives, which decide between free blocks of one size.
    """
    events = list(_Stream(work, gpu).events())
    expandable = work.config.expandable_segments
    reserved = replay(events, expandable_segments=expandable).peak_reserved_bytes
    if reserved <= room:
        return reserved, reserved
    least = smallest_limit(events, expandable_segments=expandable, resolution=RESOLUTION)
    margin = runtime_figure("replay_margin", "expandable" if expandable else "default").value
    return reserved, round(least * (1 + margin))


class _Stream:
    """Makes the events; keys count up, so that each names one allocation."""

    def __init__(self, work: Workload, gpu: GpuProfile) -> None:
        self._work = work
        self._batch = Batch(work.config.micro_batch, work.config.seq_len)
        self._bytes: dict[Size, int] = {}
        self._key = 0
        self._workspace = states.workspace_blocks(gpu, work)
        self._products = 0

    def events(self) -> Iterator[simulated.Event]:
        """Loading, then the steps."""
        yield from self._load()
        yield simulated.Event(Kind.EMPTY_CACHE)
        buckets: list[int] = []
        if self._work.config.sharding == "ddp":
            buckets, events = self._made([sum(self._trainables()) * self._work.gradient_bytes])
            yield from events
        for step in range(STEPS):
            gradients: list[int] = []
            if step == 1 and buckets:  # the order of gradients is known now
                _, events = self._made(self._buckets())
                yield from events
                yield from self._freed(buckets)
            for index in range(min(self._work.config.accumulation, MICRO_BATCHES)):
                held: list[int] = []
                yield from self._micro_batch(held, accumulates=index > 0)
                gradients += held
            yield from self._optimizer(first=step == 0)
            yield from self._freed(gradients)

    def _made(self, sizes: Sequence[int]) -> tuple[list[int], list[simulated.Event]]:
        keys, events = [], []
        for size in sizes:
            self._key += 1
            keys.append(self._key)
            events.append(simulated.Event(Kind.ALLOC, self._key, size))
        return keys, events

    def _freed(self, keys: Sequence[int]) -> list[simulated.Event]:
        return [simulated.Event(Kind.FREE, key) for key in keys]

    def _load(self) -> Iterator[simulated.Event]:
        """Weights in the order of the modules, a 4-bit one packed as it comes; then adapters."""
        work = self._work
        shards = work.parameter_shards
        element = work.trainable_bytes if work.trains_all else work.unquantized_bytes
        for elements, packs in tensors(work.model):
            if packs and work.quantized:
                whole, events = self._made([elements * work.compute_bytes])
                yield from events
                _, events = self._made(
                    [-(-elements // (2 * shards)), *_scales(elements, double=work.config.double_quantization)]
                )
                yield from events
                yield from self._freed(whole)
            else:
                _, events = self._made([-(-elements * element // shards)])
                yield from events
        if work.config.trains_adapters:
            sizes = [-(-each * work.trainable_bytes // shards) for each in self._trainables()]
            _, events = self._made(sizes)
            yield from events

    def _trainables(self) -> list[int]:
        """Elements of every tensor that trains."""
        return _trainable_tensors(self._work.model, self._work.config.lora_targets, self._rank)

    @property
    def _rank(self) -> int:
        return self._work.config.lora_rank if self._work.config.trains_adapters else 0

    def _buckets(self) -> list[int]:
        total = sum(self._trainables()) * self._work.gradient_bytes
        return [BUCKET] * (total // BUCKET) + [total % BUCKET]

    def _micro_batch(self, held: list[int], *, accumulates: bool) -> Iterator[simulated.Event]:
        """Forward and backward; ``held`` takes the gradients, which stay."""
        recorded = _whole(self._work.model, _key(self._work, accumulates=accumulates), self._targets)
        keys: dict[int, int] = {}
        ended = False
        for event in recorded.events:
            if isinstance(event, Mark):
                if event.phase == EVALUATION:
                    return
                ended = ended or event.phase == END
                if event.phase == PRODUCT:
                    yield from self._workspaces(event.place)
            elif event.size is None:
                key = keys.pop(event.key, None)
                if key is not None and ended:
                    held.append(key)
                elif key is not None:
                    yield simulated.Event(Kind.FREE, key)
            else:
                size = self._size(event)
                if size:
                    self._key += 1
                    keys[event.key] = self._key
                    yield simulated.Event(Kind.ALLOC, self._key, size)

    @property
    def _targets(self) -> str:
        return self._work.config.lora_targets if self._work.config.trains_adapters else ""

    def _size(self, event: Event) -> int:
        size = event.size
        assert size is not None
        known = self._bytes.get(size)
        if known is None:
            known = self._bytes[size] = round(self._batch.bytes(size))
        return known + (rule_bytes(event.rule, self._batch.tokens) if event.rule is not None else 0)

    def _workspaces(self, kind: int) -> Iterator[simulated.Event]:
        """cuBLAS takes its workspace at a thread's first product; forward and backward are two threads."""
        if self._products & kind:
            return
        self._products |= kind
        _, events = self._made(self._workspace)
        yield from events

    def _optimizer(self, *, first: bool) -> Iterator[simulated.Event]:
        """States at the first step, and what each step makes in passing."""
        work = self._work
        cost = states.optimizer_cost(work.config.optimizer)
        shards = work.optimizer_shards
        sizes = [-(-each * work.trainable_bytes // shards) for each in self._trainables()]
        if first and not cost.paged:
            yield from self._states(sizes, cost)
        if cost.temporary:
            keys, events = self._made(sizes)
            yield from events
            yield from self._freed(keys)
        elif cost.factored:
            for size in sizes:
                keys, events = self._made([size // work.trainable_bytes * FP32] * states.adafactor_copies(work))
                yield from events
                yield from self._freed(keys)

    def _states(self, sizes: Sequence[int], cost: states.OptimizerCost) -> Iterator[simulated.Event]:
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
            _, events = self._made([each for each in made if each])
            yield from events


def _scales(elements: int, *, double: bool) -> list[int]:
    """Scales of a 4-bit weight: one a block of 64, in 8 bits with scales of their own if quantized twice."""
    blocks = -(-elements // 64)
    return [blocks, -(-blocks // 256) * FP32, 1024, 1024] if double else [blocks * FP32, 64]


@lru_cache(maxsize=64)
def _trainable_tensors(model: ModelProfile, targets: str, rank: int) -> list[int]:
    if not rank:
        return [elements for elements, _ in tensors(model)]
    found: list[int] = []
    for layer in model.layers:
        adapted = targets_of(model.model_type, layer, targets, rank)
        for linear in layer.linears:
            if linear.path in adapted.modules:
                found += [rank * linear.in_features, rank * linear.out_features]
        for _, elements in adapted.experts:
            found += [elements // 2, elements - elements // 2]
    return found


def _key(work: Workload, *, accumulates: bool) -> Options:
    return replace(options_of(work), accumulates=accumulates)


@lru_cache(maxsize=8)
def _whole(model: ModelProfile, options: Options, targets: str) -> Recorded:
    """The program with every layer of the model."""
    found = {group.layer: targets_of(model.model_type, group.layer, targets, options.rank) for group in model.groups}
    return record(model, options, found, whole=True)
