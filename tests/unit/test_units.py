import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.units import DTYPE_BYTES, GB, GIB, ceil_div, parse_count, parse_size, round_up


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("3kb", 3000),
        ("3KiB", 3072),
        ("2TB", 2 * 10**12),
        ("1TiB", 2**40),
        ("17B", 17),
        ("17", 17),
        (" 8gb ", 8 * 10**9),
    ],
)
def test_sizes_are_decimal_or_binary_as_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "24 bananas", "-1GB", "1e9", "24GBs", "1,5GB", "0x10", "24G", "nan", "inf", "9" * 400]
)
def test_what_is_no_size_is_none(text):
    assert parse_size(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7B", 7 * 10**9),
        ("0.5b", 5 * 10**8),
        (" 500 M", 5 * 10**8),
        ("1T", 10**12),
        ("2k", 2000),
        ("124439808", 124439808),
    ],
)
def test_counts_are_in_thousands(text, number):
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "B", "-1B", "7GB", "7 billion", "1e9", "1,5B", "nan", "9" * 400])
def test_what_is_no_count_is_none(text):
    assert parse_count(text) is None


def test_gb_is_what_cards_are_sold_by_and_gib_what_memory_is_counted_in():
    assert GB == 1_000_000_000
    assert GIB == 1_073_741_824


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_bytes_of_an_element(dtype, size):
    assert DTYPE_BYTES[dtype] == size


@given(st.integers(0, 10**30), st.integers(1, 10**12))
def test_ceil_div_is_the_smallest_integer_not_below_the_quotient(numerator, denominator):
    quotient = ceil_div(numerator, denominator)
    assert (quotient - 1) * denominator < numerator <= quotient * denominator


@given(st.integers(0, 10**15), st.integers(1, 10**9))
def test_round_up_gives_the_next_multiple(value, multiple):
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert value <= rounded < value + multiple
