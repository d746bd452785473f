from itertools import count

import pytest

from ftplan.estimators.trace import replay as module
from ftplan.estimators.trace.allocator import SimulatedOutOfMemory
from ftplan.estimators.trace.replay import Replay, replay, smallest_limit
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.units import MIB

EMPTY_CACHE, RESET_PEAK = Event(Kind.EMPTY_CACHE), Event(Kind.RESET_PEAK)


def alloc(key, mib, stream=0):
    return Event(Kind.ALLOC, key, int(mib * MIB), stream)


def free(key):
    return Event(Kind.FREE, key)


def mark(number):
    return Event(Kind.MARK, number)


TWO_SEGMENTS = [alloc(0, 20), free(0), alloc(1, 30)]
"""The second request does not fit the cached segment: 50 MiB are reserved, of which 30 MiB suffice."""

LAYERS = [event for key in range(40) for event in (alloc(key, 20 + key), free(key))] + [alloc(99, 60)]
"""Each request is larger than all segments cached before."""


def test_nothing_happens_in_an_empty_stream():
    assert replay([]) == Replay(0, 0, 0, 0, 0, {})


def test_peaks_and_what_is_left():
    result = replay([alloc(0, 20), alloc(1, 30), free(0), alloc(2, 10), free(1)])
    assert result == Replay(50 * MIB, 50 * MIB, 10 * MIB, 0, 1, {})


def test_the_index_is_of_the_first_event_at_the_peak():
    assert replay([alloc(0, 20), free(0), alloc(1, 20)]).peak_index == 0


def test_phases_hold_the_highest_over_their_recurrences():
    events = [alloc(0, 20), mark(7), alloc(1, 30), free(1), mark(8), free(0), mark(7), alloc(2, 12), mark(9)]
    assert replay(events).phases == {
        7: (50 * MIB, 50 * MIB),
        8: (20 * MIB, 50 * MIB),  # what is held when it begins counts
        9: (12 * MIB, 50 * MIB),
    }
    assert replay(events).peak_allocated_bytes == 50 * MIB


def test_a_reset_forgets_peaks_and_phases_but_not_the_phase():
    events = [mark(1), alloc(0, 40), mark(2), free(0), EMPTY_CACHE, alloc(1, 12), RESET_PEAK]
    assert replay(events) == Replay(12 * MIB, 12 * MIB, 12 * MIB, 0, 6, {2: (12 * MIB, 12 * MIB)})
    after = replay([*events, alloc(2, 14)])
    assert (after.peak_allocated_bytes, after.peak_index) == (26 * MIB, 7)


def test_empty_tensors_take_nothing():
    assert replay([alloc(0, 0), Event(Kind.RECORD, 0, stream=1), free(0)]) == Replay(0, 0, 0, 0, 0, {})


def test_freeing_what_was_not_allocated_is_a_bug():
    with pytest.raises(KeyError):
        replay([free(3)])


def test_streams_do_not_share():
    assert replay([alloc(0, 20, stream=0), free(0), alloc(1, 20, stream=1)]).peak_reserved_bytes == 40 * MIB


def test_a_recorded_stream_delays_reuse():
    events = [alloc(0, 20), Event(Kind.RECORD, 0, stream=1), free(0), alloc(1, 20), alloc(2, 20)]
    assert replay(events).peak_reserved_bytes == 40 * MIB
    assert replay(events, event_delay=5).peak_reserved_bytes == 60 * MIB


def test_emptying_the_cache_avoids_the_second_segment():
    first, freed, second = TWO_SEGMENTS
    assert replay([first, freed, EMPTY_CACHE, second]).peak_reserved_bytes == 30 * MIB


def test_expandable_segments_reuse_what_is_free():
    assert replay(TWO_SEGMENTS, expandable_segments=True).peak_reserved_bytes == 40 * MIB


def test_a_limit_is_survived_by_a_retry_or_raises():
    assert replay(TWO_SEGMENTS).peak_reserved_bytes == 50 * MIB
    assert replay(TWO_SEGMENTS, limit_bytes=40 * MIB) == Replay(30 * MIB, 30 * MIB, 30 * MIB, 1, 2, {})
    with pytest.raises(SimulatedOutOfMemory):
        replay(TWO_SEGMENTS, limit_bytes=29 * MIB)


def test_smallest_limit_is_exact_where_requests_decide():
    assert smallest_limit(TWO_SEGMENTS) == 30 * MIB
    assert smallest_limit([alloc(0, 9), *TWO_SEGMENTS[1:]]) == 30 * MIB
    assert smallest_limit([]) == 0


def test_smallest_limit_counts_what_fragments():
    """The segment of 20 MiB cannot be given back, because 2 MiB of it stay in use."""
    assert smallest_limit([alloc(0, 2), alloc(1, 9), free(1), alloc(2, 30)]) == 50 * MIB


def test_smallest_limit_sees_peaks_before_a_reset():
    assert smallest_limit([*TWO_SEGMENTS, free(1), EMPTY_CACHE, RESET_PEAK, alloc(2, 5)]) == 30 * MIB


@pytest.mark.parametrize("expandable", [False, True])
def test_smallest_limit_takes_few_replays(monkeypatch, expandable):
    replays, play = count(), module._play
    monkeypatch.setattr(module, "_play", lambda *args: (next(replays), play(*args))[1])
    limit = smallest_limit(LAYERS, expandable_segments=expandable)
    assert limit == 60 * MIB
    assert next(replays) <= 8
    assert replay(LAYERS, expandable_segments=expandable, limit_bytes=limit).peak_allocated_bytes == 60 * MIB
