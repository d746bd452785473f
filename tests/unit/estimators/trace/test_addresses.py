"""Where segments lie: the order of recorded histories of an H100."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ftplan.estimators.trace.addresses import RANGE, AddressSpace
from ftplan.units import MIB


def test_large_requests_lie_each_below_the_one_before():
    space = AddressSpace()
    taken = [space.take(size * MIB) for size in (1792, 896, 1792)]
    assert taken == sorted(taken, reverse=True)
    assert taken[0] - taken[1] == 896 * MIB
    assert taken[1] - taken[2] == 1792 * MIB


def test_the_rest_of_a_range_serves_smaller_requests_from_its_start():
    space = AddressSpace()
    first = space.take(42 * MIB)
    assert space.take(20 * MIB) == first + 42 * MIB
    assert space.take(2 * MIB) == first + 62 * MIB
    assert space.take(2 * MIB) == first - RANGE


def test_what_was_given_back_serves_from_its_start_and_grows_together():
    space = AddressSpace()
    low, high = sorted((space.take(64 * MIB), space.take(64 * MIB)))
    space.give_back(high, 64 * MIB)
    space.give_back(low, 64 * MIB)
    assert space.take(100 * MIB) == low
    assert space.take(28 * MIB) == low + 100 * MIB


@given(st.lists(st.tuples(st.integers(1, 200), st.booleans()), max_size=40))
def test_no_two_pieces_overlap(requests):
    space, held = AddressSpace(), []
    for size, frees in requests:
        held.append((space.take(2 * size * MIB), 2 * size * MIB))
        if frees:
            space.give_back(*held.pop(len(held) // 2))
    held.sort()
    assert all(one + size <= other for (one, size), (other, _) in pairwise(held))
