import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.errors import BatchError
from ftplan.planner.batch import check_global_batch, splits


@pytest.mark.parametrize(("batch", "ranks", "each"), [(64, 2, 32), (32, 1, 32), (8, 8, 1), (30, 3, 10)])
def test_samples_of_a_rank(batch, ranks, each):
    assert check_global_batch(batch, ranks) == each


@pytest.mark.parametrize(
    ("batch", "ranks", "nearest"), [(32, 3, (30, 33)), (7, 2, (6, 8)), (2, 8, (8,)), (1, 2, (2,)), (100, 16, (96, 112))]
)
def test_a_batch_that_does_not_split_names_the_nearest_that_do(batch, ranks, nearest):
    with pytest.raises(BatchError, match=f"{batch} does not split evenly over {ranks} ranks") as caught:
        check_global_batch(batch, ranks)
    assert caught.value.nearest == nearest


@given(st.integers(1, 10_000), st.integers(1, 512))
def test_a_multiple_of_the_ranks_splits(samples, ranks):
    assert check_global_batch(samples * ranks, ranks) == samples


@given(st.integers(0, 10_000), st.integers(2, 512), st.data())
def test_the_nearest_batches_split_and_lie_around_the_one_asked_for(samples, ranks, data):
    batch = samples * ranks + data.draw(st.integers(1, ranks - 1))
    with pytest.raises(BatchError) as caught:
        check_global_batch(batch, ranks)
    assert all(check_global_batch(near, ranks) for near in caught.value.nearest)
    assert all(0 < abs(near - batch) < ranks for near in caught.value.nearest)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (1, [(1, 1)]),
        (6, [(6, 1), (3, 2), (2, 3), (1, 6)]),
        (7, [(7, 1), (1, 7)]),
        (16, [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)]),
    ],
)
def test_every_split_largest_micro_batch_first(samples, expected):
    assert list(splits(samples)) == expected


def test_micro_batches_have_a_limit():
    assert list(splits(12, largest=4)) == [(4, 3), (3, 4), (2, 6), (1, 12)]
    assert max(micro for micro, _ in splits(1024)) == 64


@given(st.integers(1, 5000))
def test_splits_are_exact_and_none_is_left_out(samples):
    found = list(splits(samples))
    assert all(micro * accumulation == samples for micro, accumulation in found)
    assert [micro for micro, _ in found] == [size for size in range(min(samples, 64), 0, -1) if samples % size == 0]
