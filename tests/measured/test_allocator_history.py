"""The simulated allocator beside histories recorded with ``torch.cuda.memory._record_memory_history``.

All are of runs of two steps on an H100 (torch 2.11): QLoRA with loading, 4-bit packing and training, with the
allocator's default and with expandable segments; LoRA on Llama-3-8B at 32k tokens with Liger, in which the addresses
that the driver gives decide over 1.75 GiB. An event is [action, bytes, address, stream].
"""

import gzip
import json
from itertools import accumulate
from pathlib import Path

import pytest

from ftplan.estimators.trace.addresses import AddressSpace
from ftplan.estimators.trace.allocator import CachingAllocator
from ftplan.estimators.trace.replay import replay
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.units import MIB

DATA = Path(__file__).parent / "data"
GIVEN_BACK = {"segment_free", "segment_unmap"}
RESERVED_SIGN = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}


def load(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@pytest.fixture(scope="module", params=["history-qlora", "history-qlora-expandable", "history-liger-32k"])
def history(request):
    return load(request.param)


def stream_of(history):
    """(event, its place in the history); ``empty_cache`` shows only in what it gives back."""
    keys, before = {}, ""
    for place, (action, size, address, stream) in enumerate(history["events"]):
        if action == "alloc":
            keys[address] = place
            yield Event(Kind.ALLOC, place, size, stream), place
        elif action == "free_requested":
            yield Event(Kind.FREE, keys.pop(address)), place
        elif action in GIVEN_BACK and before not in GIVEN_BACK:
            yield Event(Kind.EMPTY_CACHE), place
        before = action


class Recorded(AddressSpace):
    """The addresses that the driver gave; of two runs in one process the second gets what the first gave back."""

    def __init__(self, history):
        super().__init__()
        self.given = (address for action, _, address, _ in history["events"] if action == "segment_alloc")

    def take(self, size):
        return next(self.given)

    def give_back(self, address, size):
        pass


def test_peaks_are_as_recorded(history):
    result = replay([event for event, _ in stream_of(history)], expandable_segments=history["expandable"])
    assert history["start"] == {"allocated": 0, "reserved": 0}
    assert result.peak_reserved_bytes == history["peak_reserved"]
    assert result.peak_allocated_bytes == history["peak_alloc"]
    assert result.end_allocated_bytes == history["end"]["allocated"]


def test_memory_is_reserved_where_it_was(history):
    """After every allocation and free, not just at the peak."""
    signed = (RESERVED_SIGN.get(action, 0) * size for action, size, *_ in history["events"])
    reserved = list(accumulate(signed))
    allocator, blocks = CachingAllocator(history["expandable"], addresses=Recorded(history)), {}
    for event, place in stream_of(history):
        if event.kind == Kind.EMPTY_CACHE:
            allocator.empty_cache()
            continue
        if event.kind == Kind.ALLOC:
            blocks[event.key] = allocator.malloc(event.size, event.stream)
        else:
            allocator.free(blocks.pop(event.key))
        assert allocator.reserved_bytes == reserved[place], f"event {place}"
    assert allocator.reserved_bytes == history["end"]["reserved"]


def test_blocks_of_an_expandable_segment_lie_where_they_lay():
    """Where other segments lie, the driver decides."""
    history, starts = load("history-qlora-expandable"), {}
    allocator, blocks = CachingAllocator(expandable_segments=True), {}
    for event, place in stream_of(history):
        if event.kind == Kind.ALLOC:
            block = blocks[event.key] = allocator.malloc(event.size, event.stream)
            address = history["events"][place][2]
            start = starts.setdefault(event.size <= MIB, address)
            assert block.address == address - start, f"event {place}"
        elif event.kind == Kind.FREE:
            allocator.free(blocks.pop(event.key))
        else:
            allocator.empty_cache()
