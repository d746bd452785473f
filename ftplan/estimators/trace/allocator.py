"""PyTorch's CUDA caching allocator, simulated: what a stream of allocations reserves, and whether it survives a limit.

Rules from c10/cuda/CUDACachingAllocator.cpp (``DeviceCachingAllocator``, as in torch 2.11); each method names the
function it follows. Left out: CUDA graphs and memory pools, and the options that are off unless asked for
(``max_split_size``, ``garbage_collection_threshold``, ``roundup_power2_divisions``, ``throw_on_cudamalloc_oom``).

Assumed, because the driver or the GPU decides it and not the allocator:

* Where segments lie. Among free blocks of one size the lowest address is taken, so this decides which segment fills:
  `addresses`.
* When another stream has finished with a block (``record_stream``): ``event_delay`` allocations later.
* That the device has all the memory, and the addresses, that the limit allows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from operator import attrgetter
from typing import Final

from ftplan.estimators.blocks import MEDIUM, MEDIUM_SEGMENT, ROUNDING, SEGMENT_ROUNDING, SMALL, SMALL_SEGMENT
from ftplan.estimators.trace.addresses import AddressSpace
from ftplan.units import round_up

FREE: Final = 0
USED: Final = 1
UNMAPPED: Final = 2
"""States of a block. A block that waits for another stream is used: it neither serves requests nor merges."""

NEVER_REFUSED: Final = 2**63
"""Above every limit."""

_ADDRESS_BITS: Final = 48
_ADDRESS_SPACE: Final = 2**46
_ADDRESS: Final = attrgetter("address")


class SimulatedOutOfMemory(Exception):  # noqa: N818 - named like torch.OutOfMemoryError, which it stands for
    """The limit leaves no room for a request, even after everything cached was given back."""

    def __init__(self, wanted_bytes: int, allocated_bytes: int, reserved_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{wanted_bytes} bytes wanted beside {reserved_bytes} reserved ({allocated_bytes} allocated) "
            f"of {limit_bytes} allowed"
        )
        self.wanted_bytes = wanted_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.limit_bytes = limit_bytes


class Block:
    """A part of a segment, linked with the parts before and after it; the whole segment has neither."""

    __slots__ = ("address", "following", "pool", "preceding", "size", "state")

    def __init__(
        self, pool: Pool, address: int, size: int, state: int, preceding: Block | None, following: Block | None
    ) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.state = state
        self.preceding = preceding
        self.following = following
        if preceding is not None:
            preceding.following = self
        if following is not None:
            following.preceding = self


class Pool:
    """The free blocks of one stream that are small, or those that are large (``BlockPool``).

    ``keys`` orders them by (size, address), packed into one integer because that compares fastest. An expandable pool
    has one segment, whose pages are mapped as needed; ``unmapped`` holds the gaps in it, by address.
    """

    __slots__ = ("blocks", "expandable", "keys", "page", "smallest_rest", "stream", "unmapped")

    def __init__(self, *, stream: int, small: bool, expandable: bool) -> None:
        self.stream = stream
        self.expandable = expandable
        self.page = SMALL_SEGMENT if small else MEDIUM_SEGMENT
        self.smallest_rest = ROUNDING if small or expandable else SMALL + ROUNDING
        """The smallest remainder that is split off (``should_split``)."""
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped = [Block(self, 0, _ADDRESS_SPACE, UNMAPPED, None, None)] if expandable else []

    def add(self, block: Block) -> None:
        """Keep a block as free."""
        block.state = FREE
        key = block.size << _ADDRESS_BITS | block.address
        insort(self.keys, key)
        self.blocks[key] = block

    def remove(self, block: Block) -> None:
        """Keep a free block no longer."""
        key = block.size << _ADDRESS_BITS | block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]

    def take(self, size: int) -> Block | None:
        """The free block that fits best (``get_free_block``)."""
        keys = self.keys
        index = bisect_left(keys, size << _ADDRESS_BITS)
        if index == len(keys):
            return None
        if self.expandable:
            index = self._least_extensible(index)
        return self.blocks.pop(keys.pop(index))

    def _least_extensible(self, index: int) -> int:
        """A block before a gap counts with the gap, so that the end of the segment is taken last."""
        keys, blocks = self.keys, self.blocks
        reach = _reach(blocks[keys[index]])
        while reach > keys[index] >> _ADDRESS_BITS and index + 1 < len(keys):
            following = _reach(blocks[keys[index + 1]])
            if following >= reach:
                break
            index, reach = index + 1, following
        return index

    def split(self, block: Block, size: int) -> Block:
        """The first ``size`` bytes of a block; the rest becomes free (``alloc_found_block``)."""
        first = Block(self, block.address, size, USED, block.preceding, block)
        block.address += size
        block.size -= size
        self.add(block)
        return first

    def merge(self, block: Block) -> None:
        """Let a block absorb the neighbours that are in its state (``try_merge_blocks``)."""
        state = block.state
        before, after = block.preceding, block.following
        if before is not None and before.state == state:
            self._forget(before)
            block.address = before.address
            block.size += before.size
            block.preceding = before = before.preceding
            if before is not None:
                before.following = block
        if after is not None and after.state == state:
            self._forget(after)
            block.size += after.size
            block.following = after = after.following
            if after is not None:
                after.preceding = block

    def _forget(self, block: Block) -> None:
        if block.state == FREE:
            self.remove(block)
        else:
            self.unmapped.remove(block)

    def find_gap(self, size: int) -> Block:
        """The lowest start of free and unmapped blocks that hold ``size`` together (``find_expandable_block``)."""
        for gap in self.unmapped:
            before = gap.preceding
            start = before if before is not None and before.state == FREE else gap
            if _has_room(start, size):
                return start
        raise AssertionError("the end of an expandable segment is never reached")

    def map(self, gap: Block, size: int) -> int:
        """Back the first ``size`` bytes of a gap by pages; returns the bytes of the pages (``map_block``)."""
        mapped = round_up(size, self.page)
        self.unmapped.remove(gap)
        if mapped < gap.size:
            rest = Block(self, gap.address + mapped, gap.size - mapped, UNMAPPED, gap, gap.following)
            insort(self.unmapped, rest, key=_ADDRESS)
            gap.size = mapped
        gap.state = FREE
        self.merge(gap)
        self.add(gap)
        return mapped

    def unmap(self, block: Block) -> int:
        """Take the whole pages from a free block; returns their bytes (``unmap_block``)."""
        start = round_up(block.address, self.page)
        end = (block.address + block.size) // self.page * self.page
        if start >= end:
            return 0
        self.remove(block)
        before, after = start - block.address, block.address + block.size - end
        if before:
            self.add(Block(self, block.address, before, FREE, block.preceding, block))
        if after:
            self.add(Block(self, end, after, FREE, block, block.following))
        block.address, block.size, block.state = start, end - start, UNMAPPED
        self.merge(block)
        insort(self.unmapped, block, key=_ADDRESS)
        return end - start


class CachingAllocator:
    """The allocator of one device.

    ``limit_bytes`` acts as ``torch.cuda.set_per_process_memory_fraction`` does: on what is reserved. With expandable
    segments the request is checked, rounded as for a segment of its own, and not the pages mapped for it. So less than
    the limit can be refused, and up to 18 MiB more than the limit can be reserved. ``addresses`` says where the driver
    puts segments.
    """

    def __init__(
        self,
        expandable_segments: bool = False,
        limit_bytes: int | None = None,
        *,
        event_delay: int = 0,
        addresses: AddressSpace | None = None,
    ) -> None:
        self.expandable_segments = expandable_segments
        self.limit_bytes = limit_bytes
        self.event_delay = event_delay
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self.retries = 0
        """As ``num_alloc_retries``: how often everything cached was given back to make room."""
        self.most_granted_bytes = 0
        """The most that was reserved together with a request that the limit let through."""
        self.least_refused_bytes = NEVER_REFUSED
        """The least that would have been reserved together with a request that the limit refused."""
        self._small: dict[int, Pool] = {}
        self._large: dict[int, Pool] = {}
        self._addresses = addresses or AddressSpace()
        self._used_elsewhere: set[Block] = set()
        self._waiting: deque[tuple[int, Block]] = deque()
        self._clock = 0

    def malloc(self, size: int, stream: int = 0) -> Block:
        """A block of at least ``size`` bytes, which must not be 0 (``DeviceCachingAllocator::malloc``)."""
        if self._waiting:
            self._process_events()
        size = (size + (ROUNDING - 1)) // ROUNDING * ROUNDING
        try:
            pool = (self._small if size <= SMALL else self._large)[stream]
        except KeyError:
            pool = self._new_pool(size, stream)
        block = pool.take(size)
        if block is None:
            block = self._grow(pool, size)
        if block.size - size >= pool.smallest_rest:
            block = pool.split(block, size)
        else:
            block.state = USED
        self.allocated_bytes = allocated = self.allocated_bytes + block.size
        if allocated > self.peak_allocated_bytes:
            self.peak_allocated_bytes = allocated
        return block

    def free(self, block: Block) -> None:
        """Return a block; it can serve again at once, unless another stream used it (``free``)."""
        self.allocated_bytes -= block.size
        if block in self._used_elsewhere:
            self._used_elsewhere.remove(block)
            self._waiting.append((self._clock + self.event_delay, block))
        else:
            _free_block(block)

    def record_stream(self, block: Block, stream: int) -> None:
        """Note that another stream uses a block (``recordStream``)."""
        if stream != block.pool.stream:
            self._used_elsewhere.add(block)

    def empty_cache(self) -> None:
        """Give back every segment, or page of an expandable one, that is free (``release_cached_blocks``)."""
        while self._waiting:
            _free_block(self._waiting.popleft()[1])
        for pool in (*self._large.values(), *self._small.values()):
            for block in list(pool.blocks.values()):
                if pool.expandable:
                    self.reserved_bytes -= pool.unmap(block)
                elif block.preceding is None and block.following is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size
                    self._addresses.give_back(block.address, block.size)

    def reset_peaks(self) -> None:
        """Start the peaks again from what is held now (``resetPeakStats``)."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def _new_pool(self, size: int, stream: int) -> Pool:
        small = size <= SMALL
        pool = Pool(stream=stream, small=small, expandable=self.expandable_segments)
        (self._small if small else self._large)[stream] = pool
        return pool

    def _process_events(self) -> None:
        """Free the blocks that other streams have finished with; time is counted in allocations."""
        waiting, now = self._waiting, self._clock
        while waiting and waiting[0][0] <= now:
            _free_block(waiting.popleft()[1])
        self._clock = now + 1

    def _grow(self, pool: Pool, size: int) -> Block:
        """A block from the driver (``malloc``, ``alloc_block``).

        The retry does not look for a cached block again, although waiting for other streams may have freed one that
        fits: pytorch issue 189504.
        """
        wanted = segment_bytes(size)
        if not self._check(wanted):
            self.empty_cache()
            self.retries += 1
            if not self._check(wanted):
                assert self.limit_bytes is not None
                raise SimulatedOutOfMemory(wanted, self.allocated_bytes, self.reserved_bytes, self.limit_bytes)
        if pool.expandable:
            return self._extend(pool, size)
        self._reserve(wanted)
        return Block(pool, self._addresses.take(wanted), wanted, USED, None, None)

    def _check(self, wanted: int) -> bool:
        total = self.reserved_bytes + wanted
        if self.limit_bytes is None or total <= self.limit_bytes:
            self.most_granted_bytes = max(self.most_granted_bytes, total)
            return True
        self.least_refused_bytes = min(self.least_refused_bytes, total)
        return False

    def _extend(self, pool: Pool, size: int) -> Block:
        """A block at the lowest gap of an expandable segment (``try_allocate_expandable_block``)."""
        block = pool.find_gap(size)
        if block.state == UNMAPPED:
            self._reserve(pool.map(block, min(block.size, size)))
        while block.size < size:
            gap = block.following
            assert gap is not None
            self._reserve(pool.map(gap, min(size - block.size, gap.size)))
            block = gap
        pool.remove(block)
        return block

    def _reserve(self, size: int) -> None:
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)


def segment_bytes(size: int) -> int:
    """What is asked of the driver for a request (``get_allocation_size``)."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return MEDIUM_SEGMENT if size < MEDIUM else round_up(size, SEGMENT_ROUNDING)


def _free_block(block: Block) -> None:
    block.state = FREE
    block.pool.merge(block)
    block.pool.add(block)


def _reach(block: Block) -> int:
    after = block.following
    return block.size + after.size if after is not None and after.state == UNMAPPED else block.size


def _has_room(start: Block, size: int) -> bool:
    found, block = 0, start
    while found < size and block.state != USED:
        found += block.size
        if block.following is None:
            break
        block = block.following
    return found >= size
