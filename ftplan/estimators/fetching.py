"""ZeRO-3's parameters module by module: which of them are whole on a rank, and when.

As DeepSpeed's coordinator does it (deepspeed 0.19.8, runtime/zero/partitioned_param_coordinator.py): before a module
runs its parameters are gathered, and those that come next, up to the prefetch bucket; after it they are released, but
where they are used again before so many elements passed by (stage3_max_reuse_distance) or prefetching went past their
next use. The first micro-batch of a run only records the order: everything is gathered when it is used and released at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from ftplan.estimators.module_order import Fetching, Kind, Section, Weight, order_of
from ftplan.units import ceil_div

REUSE: Final = 10**9
"""Elements: stage3_max_reuse_distance, and stage3_max_live_parameters, beyond which nothing is prefetched."""


class Memory(Protocol):
    """Where parameters are gathered."""

    def allocate(self, size: int, *, among_kernels: bool = False) -> int:
        """Allocate ``size`` bytes on the stream of gathers, or that of the kernels; returns their key."""
        ...

    def release(self, key: int) -> None:
        """Give them back, which the kernels may still read."""
        ...


class Coordinator:
    """Runs sections in order, and gathers and releases in ``memory``."""

    def __init__(self, fetching: Fetching, memory: Memory) -> None:
        order = order_of(fetching)
        self._weights = order.weights
        self._memory = memory
        self._ranks = fetching.ranks
        self._copies = fetching.copies
        self._lingers = fetching.lingers
        self._holds_frozen = fetching.holds_frozen
        self._bucket = fetching.prefetch_elements
        steps = [module for section in order.sections for module in section.modules]
        self._queue = [(each, step) for step, module in enumerate(steps) for each in module]
        self._uses = _uses(steps)
        self._passed = _passed(steps, order.weights)
        self._records = True
        self._step = self._front = self._available = 0
        self._last_fetched: dict[int, int] = {}
        self._whole: dict[int, int] = {}
        self._flying: dict[int, _Gather] = {}
        self._kept = order.kept
        self._staying: set[int] = set()
        self._held: set[int] = set()

    def begin(self, *, records: bool) -> None:
        """A micro-batch begins; the first of a run ``records``."""
        self._records = records
        self._step = self._front = self._available = 0
        self._last_fetched.clear()
        self._staying = set() if records else set(self._kept)

    def run(self, section: Section) -> None:
        """All modules of a section run."""
        recomputes = section.kind == "recompute"
        if section.kind == "head backward" and self._records:
            self._release(tuple(self._kept & self._whole.keys()))
            self._staying = set(self._kept)
        if section.kind == "head":
            self._arrive()
            self._find()
        for module in section.modules:
            self._fetch(module)
            if recomputes:
                self._held.update(each for each in module if not self._weights[each].trains)
            if section.kind != "end":  # no hook tells that the embedding's backward has ended
                self._release(module)
        if section.kind == "backward" and not self._holds_frozen:
            self._let_go()
        if section.kind == "end":
            self._finish()

    def _find(self) -> None:
        """The loss reads weights of modules that are not called: at first they are gathered there and then."""
        for each in self._kept - self._whole.keys():
            weight = self._weights[each]
            shard = ceil_div(weight.elements, self._ranks) * weight.element
            whole = self._memory.allocate(shard * self._ranks, among_kernels=True)
            if self._copies:
                self._free([self._memory.allocate(shard, among_kernels=True)])
            self._whole[each] = whole
            self._available += weight.elements

    def _fetch(self, module: Sequence[int]) -> None:
        self._gather([each for each in module if each not in self._whole and each not in self._flying])
        for each in module:
            if each in self._flying:
                self._wait(each)
        if not self._records:
            self._advance(sum(self._last_fetched.get(each, -1) < self._step for each in module))
            self._prefetch()
        self._step += 1

    def _advance(self, count: int) -> None:
        """``count`` parameters of this module leave the queue, with all before them."""
        seen: set[int] = set()
        while self._front < len(self._queue) and len(seen) < count:
            each, step = self._queue[self._front]
            self._front += 1
            self._last_fetched[each] = step
            seen.add(each)

    def _prefetch(self) -> None:
        room = min(REUSE - self._available, self._bucket)
        found: list[int] = []
        elements = 0
        while self._front < len(self._queue) and elements < room:
            each, step = self._queue[self._front]
            self._front += 1
            self._last_fetched[each] = max(self._last_fetched.get(each, -1), step)
            if each not in self._whole and each not in self._flying and each not in found:
                found.append(each)
                elements += self._weights[each].elements
        self._gather(found)

    def _gather(self, numbers: list[int]) -> None:
        """Start to gather parameters: one into its own memory, several into one buffer of each dtype first."""
        if not numbers:
            return
        weights, memory = self._weights, self._memory
        self._available += sum(weights[each].elements for each in numbers)
        gather = _Gather(sorted(numbers))
        shards = [ceil_div(weights[each].elements, self._ranks) * weights[each].element for each in gather.numbers]
        if self._ranks == 1:
            copied = shards if self._copies else [0] * len(shards)
            gather.made = [memory.allocate(size) if size else -1 for size in copied]
        elif len(numbers) == 1:
            gather.made = [memory.allocate(shards[0] * self._ranks)]
            gather.sent = [memory.allocate(shards[0])] if self._copies else []
            if not self._lingers:
                self._sent(gather)
        else:
            for element in sorted({weights[each].element for each in gather.numbers}):
                sent = [
                    size for each, size in zip(gather.numbers, shards, strict=True) if weights[each].element == element
                ]
                gather.buffers.append(memory.allocate(sum(sent) * self._ranks))
                for key in [memory.allocate(size) for size in sent if self._copies]:
                    memory.release(key)
        for each in gather.numbers:
            self._flying[each] = gather

    def _wait(self, number: int) -> None:
        """A parameter has to be whole: all that came with it are copied out; the last of them frees the buffers."""
        gather = self._flying.pop(number)
        self._sent(gather)
        if not gather.made:
            gather.made = [self._memory.allocate(self._size(each)) for each in gather.numbers]
        self._whole[number] = gather.made[gather.numbers.index(number)]
        gather.left -= 1
        if not gather.left:
            self._free(gather.buffers)

    def _arrive(self) -> None:
        """Time has passed: what was sent has arrived."""
        for gather in self._flying.values():
            self._sent(gather)

    def _sent(self, gather: _Gather) -> None:
        self._free(gather.sent)
        gather.sent = []

    def _release(self, module: Sequence[int]) -> None:
        for each in module:
            if each in self._whole and each not in self._held | self._staying and not self._is_used_again(each):
                self._drop(each)

    def _is_used_again(self, number: int) -> bool:
        if self._records:
            return False
        if self._last_fetched.get(number, -1) > self._step:
            return True
        following = next((use for use in self._uses[number] if use >= self._step), None)
        if following is None:
            return False
        return self._passed[following] - self._passed[self._step] < REUSE

    def _let_go(self) -> None:
        for each in sorted(self._held & self._whole.keys()):
            self._drop(each)
        self._held.clear()

    def _drop(self, number: int) -> None:
        self._free([self._whole.pop(number)])
        self._available -= self._weights[number].elements

    def _finish(self) -> None:
        """The backward has ended."""
        self._held.clear()
        for each in list(self._flying):
            self._wait(each)
        for each in list(self._whole):
            self._drop(each)

    def _size(self, number: int) -> int:
        weight = self._weights[number]
        return weight.elements * weight.element

    def _free(self, keys: Sequence[int]) -> None:
        for key in keys:
            if key >= 0:
                self._memory.release(key)


class _Gather:
    """A collective: its parameters, what it made of them, the buffers, and what was copied from the host to be sent."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.left = len(numbers)
        self.made: list[int] = []
        self.buffers: list[int] = []
        self.sent: list[int] = []


def _uses(steps: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """The steps that use each parameter."""
    found: dict[int, list[int]] = {}
    for step, module in enumerate(steps):
        for each in module:
            found.setdefault(each, []).append(step)
    return found


def _passed(steps: Sequence[tuple[int, ...]], weights: Sequence[Weight]) -> list[int]:
    """Elements of all modules before each step."""
    total, found = 0, []
    for module in steps:
        found.append(total)
        total += sum(weights[each].elements for each in module)
    return [*found, total]


class Live(NamedTuple):
    """Bytes of whole parameters at most: while layers run forward, at the loss, and in the backward."""

    forward: int
    loss: int
    backward: int


class _Counted:
    """Memory of which only the sum is known."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self.now = self.peak = 0

    def allocate(self, size: int, *, among_kernels: bool = False) -> int:
        del among_kernels
        self._sizes.append(size)
        self.now += size
        self.peak = max(self.peak, self.now)
        return len(self._sizes) - 1

    def release(self, key: int) -> None:
        self.now -= self._sizes[key]


@lru_cache(maxsize=1024)
def live(fetching: Fetching) -> Live:
    """Whole parameters of the micro-batches after the first, which prefetch."""
    memory = _Counted()
    coordinator = Coordinator(fetching, memory)
    coordinator.begin(records=False)
    peaks: dict[Kind, int] = {}
    order = order_of(fetching)
    for section in order.sections:
        memory.peak = 0
        coordinator.run(section)
        peaks[section.kind] = max(peaks.get(section.kind, 0), memory.peak, memory.now)
    forward, backward = (
        max(peaks.get(kind, 0) for kind in kinds) + order.persistent_bytes
        for kinds in (("embedding", "forward"), ("head backward", "recompute", "backward"))
    )
    return Live(forward, peaks["head"] + order.persistent_bytes, backward)
