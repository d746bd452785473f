"""What holds for every stream of allocations, whatever the simulated allocator does with it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.estimators.trace.allocator import FREE, UNMAPPED, USED, CachingAllocator, SimulatedOutOfMemory
from ftplan.estimators.trace.replay import replay, smallest_limit
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.units import MIB

PAGES_BEYOND_LIMIT = 18 * MIB
"""Pages of 20 MiB are mapped for a request that was checked as at least 2 MiB of the last of them."""

sizes = st.one_of(
    st.integers(1, 3 * MIB), st.integers(1, 60).map(lambda mebibytes: mebibytes * MIB), st.integers(MIB, 45 * MIB)
)
streams = st.integers(0, 1)
step = st.one_of(
    st.tuples(st.just("alloc"), sizes, streams),
    st.tuples(st.just("free"), st.integers(0, 99), streams),
    st.tuples(st.sampled_from(("alloc", "free")), st.integers(1, 30 * MIB), streams),
    st.tuples(st.just("record"), st.integers(0, 99), streams),
    st.tuples(st.just("empty"), st.just(0), streams),
)
steps = st.integers(0, 80).flatmap(lambda length: st.lists(step, min_size=length, max_size=length))
"""Of every length: lists alone would be about five long."""
limits = st.one_of(st.none(), st.integers(20, 200).map(lambda mebibytes: mebibytes * MIB))


@st.composite
def event_streams(draw):
    """Whole streams: every key is allocated once, and freed at most once, later."""
    events, live = [], []
    for key, (step, number, stream) in enumerate(draw(steps)):
        if step == "alloc":
            events.append(Event(Kind.ALLOC, key, number, stream))
            live.append(key)
        elif step == "empty":
            events.append(Event(Kind.EMPTY_CACHE))
        elif live:
            chosen = live.pop(number % len(live)) if step == "free" else live[number % len(live)]
            events.append(Event(Kind.FREE if step == "free" else Kind.RECORD, chosen, 0, stream))
    return events


def walk(block):
    """All blocks of the segment that holds one."""
    while block.preceding is not None:
        block = block.preceding
    while block is not None:
        yield block
        block = block.following


def segments_of(allocator, live):
    """Every segment, as the list of its blocks."""
    pools = [*allocator._small.values(), *allocator._large.values()]
    known = [*live, *(block for _, block in allocator._waiting)]
    for pool in pools:
        known += [*pool.blocks.values(), *pool.unmapped]
    return {id(blocks[0]): blocks for blocks in (list(walk(block)) for block in known)}.values(), pools


def check(allocator, live):
    segments, pools = segments_of(allocator, live)
    blocks = [block for segment in segments for block in segment]
    assert allocator.allocated_bytes == sum(block.size for block in live) >= 0
    assert allocator.reserved_bytes == sum(block.size for block in blocks if block.state != UNMAPPED)
    assert allocator.allocated_bytes <= allocator.reserved_bytes
    assert allocator.peak_allocated_bytes >= allocator.allocated_bytes
    assert allocator.peak_reserved_bytes >= allocator.reserved_bytes
    assert {id(block) for block in live} <= {id(block) for block in blocks if block.state == USED}
    for segment in segments:
        check_segment(segment)
    for pool in pools:
        free = [block for block in blocks if block.state == FREE and block.pool is pool]
        assert {id(block) for block in free} == {id(block) for block in pool.blocks.values()}
        assert [pool.blocks[key].size for key in pool.keys] == sorted(block.size for block in free)
        assert pool.unmapped == sorted(pool.unmapped, key=lambda block: block.address)


def check_segment(segment):
    """Blocks tile it without overlap, nothing that could be merged is not, and one pool owns it."""
    for block, following in pairwise(segment):
        assert block.address + block.size == following.address
        assert block.state != following.state or block.state == USED
        assert following.preceding is block
        assert following.pool is block.pool
    assert all(block.size > 0 for block in segment)


@given(steps, st.booleans(), limits, st.integers(0, 3))
def test_blocks_tile_their_segments_and_sums_agree(todo, expandable, limit, delay):
    allocator, live = CachingAllocator(expandable, limit, event_delay=delay), []
    for step, number, stream in todo:
        if step == "alloc":
            try:
                live.append(allocator.malloc(number, stream))
            except SimulatedOutOfMemory:
                check(allocator, live)
                continue
            assert live[-1].size >= number
            assert live[-1].pool.stream == stream
        elif step == "empty":
            allocator.empty_cache()
        elif live and step == "free":
            allocator.free(live.pop(number % len(live)))
        elif live:
            allocator.record_stream(live[number % len(live)], stream)
        check(allocator, live)
    if limit is not None:
        assert allocator.peak_reserved_bytes <= limit + (PAGES_BEYOND_LIMIT if expandable else 0)
    for block in live:
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


@given(event_streams(), st.booleans())
def test_a_replay_is_repeatable_and_its_peaks_bound_what_is_left(events, expandable):
    result = replay(events, expandable_segments=expandable)
    assert result == replay(events, expandable_segments=expandable)
    assert 0 <= result.end_allocated_bytes <= result.peak_allocated_bytes <= result.peak_reserved_bytes
    assert result.retries == 0


@given(event_streams(), st.booleans())
def test_a_stream_survives_its_smallest_limit_and_nothing_just_below(events, expandable):
    limit = smallest_limit(events, expandable_segments=expandable, resolution=0)
    result = replay(events, expandable_segments=expandable, limit_bytes=limit)
    assert result.peak_allocated_bytes <= result.peak_reserved_bytes
    free = replay(events, expandable_segments=expandable)
    assert limit >= free.peak_allocated_bytes
    if not expandable:
        assert result.peak_reserved_bytes <= limit <= free.peak_reserved_bytes
    if limit > free.peak_allocated_bytes:
        with pytest.raises(SimulatedOutOfMemory):
            replay(events, expandable_segments=expandable, limit_bytes=limit - 1)


@given(event_streams(), st.booleans(), st.floats(0.001, 0.2))
def test_the_resolution_bounds_the_error_upwards(events, expandable, resolution):
    """Survival need not be monotone: the limit found survives, but another search may find a lower one."""
    limit = smallest_limit(events, expandable_segments=expandable, resolution=resolution)
    replay(events, expandable_segments=expandable, limit_bytes=limit)


@given(event_streams(), st.booleans(), limits)
def test_between_what_was_granted_and_what_was_refused_every_limit_is_the_same(events, expandable, limit):
    """What the search for the smallest limit rests on."""
    first, lower, upper = outcome(events, expandable, limit)
    assert outcome(events, expandable, lower)[0] == first
    if upper is not None:
        assert outcome(events, expandable, upper - 1)[0] == first


def outcome(events, expandable, limit):
    allocator = CachingAllocator(expandable, limit)
    blocks, addresses = {}, []
    try:
        for kind, key, size, stream in events:
            if kind == Kind.ALLOC:
                blocks[key] = allocator.malloc(size, stream)
                addresses.append((blocks[key].address, blocks[key].size))
            elif kind == Kind.FREE:
                allocator.free(blocks[key])
            elif kind == Kind.EMPTY_CACHE:
                allocator.empty_cache()
    except SimulatedOutOfMemory:
        addresses.append("out of memory")
    refused = allocator.least_refused_bytes if allocator.retries else None
    return addresses, allocator.most_granted_bytes, refused
