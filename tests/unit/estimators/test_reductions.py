"""Scratch memory of sums: figures are of the allocator's history of real steps on an H100, torch 2.11."""

import pytest

from ftplan.estimators.reductions import reduction_scratch


@pytest.mark.parametrize(
    ("rows", "outputs", "element", "expected"),
    [
        (2048, 2048, 2, (33_554_432, 64)),  # the gradient of a norm's weight, bf16
        (60_000, 1024, 4, (138_412_032, 32)),  # Adafactor's mean over rows
        (512, 2048, 2, ()),  # too few rows to share a column
    ],
)
def test_sums_over_rows(rows, outputs, element, expected):
    assert reduction_scratch(rows, outputs, element) == expected


def test_a_card_with_fewer_multiprocessors_shares_a_column_among_fewer_blocks():
    assert sum(reduction_scratch(60_000, 1024, 4, 20)) < sum(reduction_scratch(60_000, 1024, 4, 132))
