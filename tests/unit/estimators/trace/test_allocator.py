"""Scenarios worked out by hand from the rules of CUDACachingAllocator.cpp."""

import pytest

from ftplan.estimators.trace.allocator import CachingAllocator, SimulatedOutOfMemory, segment_bytes
from ftplan.units import GIB, MIB


def held(allocator):
    return allocator.allocated_bytes, allocator.reserved_bytes


def laid(*sizes, expandable=False):
    allocator = CachingAllocator(expandable)
    for size in sizes:
        allocator.malloc(size)
    return held(allocator)


def test_driver_is_asked_for_2_mib_20_mib_or_a_multiple_of_2_mib():
    assert segment_bytes(512) == segment_bytes(MIB) == 2 * MIB
    assert segment_bytes(MIB + 512) == segment_bytes(10 * MIB - 512) == 20 * MIB
    assert segment_bytes(10 * MIB) == 10 * MIB
    assert segment_bytes(10 * MIB + 512) == 12 * MIB


@pytest.mark.parametrize(
    ("sizes", "allocated", "reserved"),
    [
        ((1,), 512, 2 * MIB),
        ((513,), 1024, 2 * MIB),
        ((MIB, MIB), 2 * MIB, 2 * MIB),
        ((MIB, 2 * MIB), 3 * MIB, 22 * MIB),  # small and large requests share no segment
        ((MIB - 512, MIB, 512), 2 * MIB, 2 * MIB),  # half a kibibyte of a small segment is split off
        ((3 * MIB, 16 * MIB), 20 * MIB, 20 * MIB),  # 1 MiB would be left of 17 MiB: not split off
        ((3 * MIB, 16 * MIB - 512), 19 * MIB - 512, 20 * MIB),  # half a kibibyte more: split off
        ((9 * MIB, 9 * MIB, 9 * MIB), 27 * MIB, 40 * MIB),
        ((11 * MIB,), 12 * MIB, 12 * MIB),
        ((int(10.5 * MIB), int(1.25 * MIB)), 12 * MIB, 12 * MIB),
    ],
)
def test_segments_and_splits(sizes, allocated, reserved):
    assert laid(*sizes) == (allocated, reserved)


def test_the_smallest_free_block_that_fits_is_taken():
    allocator = CachingAllocator()
    first = allocator.malloc(4 * MIB)
    allocator.malloc(2 * MIB)
    second = allocator.malloc(6 * MIB)
    allocator.malloc(2 * MIB)  # 6 MiB of the segment remain, behind `second`
    address = second.address
    allocator.free(first)
    allocator.free(second)
    taken = allocator.malloc(5 * MIB)
    assert (taken.address, taken.size) == (address, 6 * MIB)  # the lower of the two of 6 MiB, whole
    assert allocator.malloc(3 * MIB).address == first.address
    assert allocator.reserved_bytes == 20 * MIB


def test_a_freed_block_merges_with_both_neighbours():
    allocator = CachingAllocator()
    blocks = [allocator.malloc(5 * MIB) for _ in range(4)]
    start = blocks[0].address
    for block in (blocks[0], blocks[2], blocks[3], blocks[1]):
        allocator.free(block)
    assert held(allocator) == (0, 20 * MIB)
    assert allocator.malloc(20 * MIB).address == start
    assert held(allocator) == (20 * MIB, 20 * MIB)


def test_streams_share_nothing():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB, stream=0))
    allocator.malloc(30 * MIB, stream=1)
    assert allocator.reserved_bytes == 60 * MIB
    allocator.malloc(30 * MIB, stream=0)
    assert allocator.reserved_bytes == 60 * MIB


def test_a_new_segment_lies_below_all_before_it_or_where_one_was_given_back():
    allocator = CachingAllocator()
    first = allocator.malloc(32 * MIB)
    assert allocator.malloc(32 * MIB).address < first.address
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.malloc(32 * MIB).address == first.address


def test_cached_segments_are_given_back_before_the_limit_refuses():
    allocator = CachingAllocator(limit_bytes=40 * MIB)
    allocator.free(allocator.malloc(20 * MIB))
    allocator.malloc(30 * MIB)
    assert (allocator.retries, *held(allocator)) == (1, 30 * MIB, 30 * MIB)
    assert (allocator.most_granted_bytes, allocator.least_refused_bytes) == (30 * MIB, 50 * MIB)


def test_a_segment_in_use_is_not_given_back():
    allocator = CachingAllocator(limit_bytes=40 * MIB)
    allocator.malloc(9 * MIB)
    with pytest.raises(SimulatedOutOfMemory) as caught:
        allocator.malloc(30 * MIB)
    error = caught.value
    assert (error.wanted_bytes, error.allocated_bytes, error.reserved_bytes) == (30 * MIB, 9 * MIB, 20 * MIB)
    assert (error.limit_bytes, allocator.retries) == (40 * MIB, 1)


def test_a_limit_may_be_reached_exactly():
    allocator = CachingAllocator(limit_bytes=30 * MIB)
    allocator.malloc(30 * MIB)
    assert allocator.retries == 0


def test_peaks_and_their_reset():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB))
    allocator.empty_cache()
    allocator.malloc(9 * MIB)
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (30 * MIB, 30 * MIB)
    allocator.reset_peaks()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (9 * MIB, 20 * MIB)


@pytest.mark.parametrize(("delay", "reserved"), [(0, [30, 60, 90]), (1, [60, 60, 90]), (2, [60, 90, 90])])
def test_a_block_used_by_another_stream_waits(delay, reserved):
    allocator = CachingAllocator(event_delay=delay)
    block = allocator.malloc(30 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)
    assert held(allocator) == (0, 30 * MIB)
    for wanted in reserved:
        allocator.malloc(30 * MIB)
        assert allocator.reserved_bytes == wanted * MIB


def test_use_by_its_own_stream_makes_no_block_wait():
    allocator = CachingAllocator(event_delay=9)
    block = allocator.malloc(30 * MIB, stream=3)
    allocator.record_stream(block, 3)
    allocator.free(block)
    allocator.malloc(30 * MIB, stream=3)
    assert allocator.reserved_bytes == 30 * MIB


def test_emptying_the_cache_waits_for_other_streams():
    allocator = CachingAllocator(event_delay=9)
    block = allocator.malloc(30 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def test_a_block_that_the_retry_waited_for_is_not_taken():
    """As the real one: it fits, but lies in a segment in use, and only the driver is asked again."""
    allocator = CachingAllocator(limit_bytes=20 * MIB, event_delay=9)
    first, _ = allocator.malloc(9 * MIB), allocator.malloc(9 * MIB)
    start = first.address
    allocator.record_stream(first, 1)
    allocator.free(first)
    with pytest.raises(SimulatedOutOfMemory):
        allocator.malloc(9 * MIB)
    assert allocator.malloc(9 * MIB).address == start


def test_expandable_segments_grow_by_pages():
    allocator = CachingAllocator(expandable_segments=True)
    assert allocator.malloc(125 * MIB).address == 0
    assert held(allocator) == (125 * MIB, 140 * MIB)
    assert allocator.malloc(20 * MIB).address == 125 * MIB  # 15 MiB were left; one page of 20 MiB more
    assert held(allocator) == (145 * MIB, 160 * MIB)
    allocator.malloc(1)
    assert allocator.reserved_bytes == 162 * MIB


def test_expandable_segments_split_off_the_smallest_rest():
    assert laid(20 * MIB - 512, expandable=True) == (20 * MIB - 512, 20 * MIB)
    assert laid(11 * MIB, 9 * MIB, expandable=True) == (20 * MIB, 20 * MIB)
    assert laid(3 * MIB, 16 * MIB, expandable=True) == (19 * MIB, 20 * MIB)


def test_expandable_segments_are_one_a_stream():
    allocator = CachingAllocator(expandable_segments=True)
    blocks = [allocator.malloc(5 * MIB, stream) for stream in (0, 1, 0)]
    assert [block.address for block in blocks] == [0, 0, 5 * MIB]
    assert allocator.reserved_bytes == 40 * MIB


def test_the_end_of_an_expandable_segment_is_taken_last():
    allocator = CachingAllocator(expandable_segments=True)
    first = allocator.malloc(30 * MIB)
    allocator.malloc(2 * MIB)  # 8 MiB before the end: the better fit, if they could not grow
    allocator.free(first)
    assert allocator.malloc(5 * MIB).address == 0


def test_pages_inside_a_free_block_are_unmapped_and_mapped_again():
    allocator = CachingAllocator(expandable_segments=True)
    first = allocator.malloc(50 * MIB)
    second = allocator.malloc(5 * MIB)
    assert allocator.reserved_bytes == 60 * MIB
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB  # 0 to 40 MiB; the page from 40 MiB also holds the second
    assert allocator.malloc(10 * MIB).address == 40 * MIB
    again = allocator.malloc(30 * MIB)
    assert (again.address, allocator.reserved_bytes) == (0, 60 * MIB)
    for block in (again, second):
        allocator.free(block)
    allocator.empty_cache()
    assert held(allocator) == (10 * MIB, 20 * MIB)


def test_a_gap_with_the_free_block_before_it_serves_a_request():
    allocator = CachingAllocator(expandable_segments=True)
    low, middle, high = (allocator.malloc(size * MIB) for size in (30, 50, 30))
    allocator.free(middle)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 80 * MIB  # 40 to 80 MiB and the end from 120 MiB are unmapped
    assert allocator.malloc(45 * MIB).address == 30 * MIB
    assert allocator.reserved_bytes == 120 * MIB
    assert (low.address, high.address) == (0, 80 * MIB)


def test_everything_freed_leaves_nothing_of_an_expandable_segment():
    allocator = CachingAllocator(expandable_segments=True)
    for block in [allocator.malloc(size) for size in (GIB, 3 * MIB, 700)]:
        allocator.free(block)
    allocator.empty_cache()
    assert held(allocator) == (0, 0)
    assert allocator.malloc(9 * MIB).address == 0


def test_a_limit_is_compared_with_the_request_and_not_with_its_pages():
    allocator = CachingAllocator(expandable_segments=True, limit_bytes=12 * MIB)
    allocator.malloc(11 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


def test_what_an_expandable_segment_reserves_can_be_too_low_a_limit():
    """25 MiB need one page beside the 10 MiB that are left, but 26 MiB are compared with the limit."""
    assert laid(50 * MIB, 25 * MIB, expandable=True) == (75 * MIB, 80 * MIB)
    allocator = CachingAllocator(expandable_segments=True, limit_bytes=80 * MIB)
    allocator.malloc(50 * MIB)
    with pytest.raises(SimulatedOutOfMemory):
        allocator.malloc(25 * MIB)
