import pytest

from benchmarks.measured_cases import known_cases
from ftplan.estimators.blocks import _Blocks, unsplit_bytes
from ftplan.profiles.models import load_model
from ftplan.units import MIB


def laid(*sizes):
    blocks = _Blocks()
    for size in sizes:
        blocks.add(size)
    return blocks.allocated


@pytest.mark.parametrize(
    ("sizes", "allocated"),
    [
        ((1,), 512),
        ((513,), 1024),
        ((MIB,), MIB),
        ((11 * MIB,), 12 * MIB),  # 1 MiB is left of the segment: not split off
        ((int(10.5 * MIB),), int(10.5 * MIB)),  # 1.5 MiB is left: split off
        ((9 * MIB, 9 * MIB), 18 * MIB),  # both from one segment of 20 MiB, whose last 2 MiB are split off
        ((19 * MIB // 2, 10 * MIB - 512), 20 * MIB),  # the second takes the remainder with the half MiB it leaves
        ((int(10.5 * MIB), int(1.25 * MIB)), 12 * MIB),  # the second fits into what the first left
    ],
)
def test_blocks_follow_the_allocators_rules(sizes, allocated):
    assert laid(*sizes) == allocated


def test_a_matrix_of_qwen_takes_half_a_mebibyte_more():
    assert laid(3584 * 18944 * 2) == 130 * MIB


def test_full_models_are_laid_as_measured():
    """The first rows of the measured runs that hold nothing but unquantized weights."""
    full = [case for case in known_cases() if case.config.method == "full" and case.is_single]
    assert full
    for case in full:
        element = 4 if case.config.weights_dtype == "fp32" else 2
        predicted = case.model.total_params * element + unsplit_bytes(case.model, element, element, 1)
        assert predicted == pytest.approx(case.row["static_alloc"], abs=64 * 1024)


def test_shards_have_blocks_of_their_own():
    model = load_model("Qwen2.5-7B")
    assert unsplit_bytes(model, 2, 2, 2) != unsplit_bytes(model, 2, 2, 1)
    assert unsplit_bytes(model, 2, 2, 2) >= 0
