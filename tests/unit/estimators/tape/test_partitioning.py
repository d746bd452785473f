"""Gradients of 4, 100 and 5 K elements (K = 64 x 64, the bucket) in 16 bit on two ranks, as ZeRO-1 and 2 take them."""

import pytest
from small import workload

from ftplan.estimators.tape.log import COMPUTE, Log
from ftplan.estimators.tape.partitioning import REDUCTION, Partitioning
from ftplan.estimators.tape.replaying import run_events
from ftplan.estimators.trace.replay import replay
from ftplan.estimators.trace.stream import Kind
from ftplan.profiles.runtime import runtime_figure

K = 64 * 64
SMALL, OTHER, LARGE = 4, 100, 5 * K
ORDER = (LARGE, SMALL, OTHER)
"""In the model's order: the large one is of the first rank, and comes last."""


@pytest.fixture
def log():
    return Log()


def partitioning(log, sharding="zero2", *, last=False, **fields):
    work = workload("2x24GB", method="full", weights_dtype="bf16", precision="bf16", sharding=sharding, **fields)
    return Partitioning(log, work, ORDER, last=last)


def backward(log, made, order=ORDER):
    """Each gradient is made, is complete, and would be freed."""
    for elements in reversed(order):
        key = log.allocate(2 * elements)
        made.arrived(2 * elements)
        if not made.takes([key]):
            log.free([key])
    made.end()


def live(log):
    """Bytes and streams of what is left."""
    left = {event.key: (event.size, event.stream) for event in log.events if event.kind == Kind.ALLOC}
    for event in log.events:
        if event.kind == Kind.FREE:
            del left[event.key]
    return sorted(left.values())


def sizes(log):
    return [event.size for event in log.events if event.kind == Kind.ALLOC]


def test_of_a_backward_the_rank_s_own_gradients_stay_whole_on_the_stream_that_reduces(log):
    made = partitioning(log)
    made.begin(first=True, last=True)
    backward(log, made)
    assert live(log) == [(2 * LARGE, REDUCTION)]
    assert [size for size in sizes(log) if size == 2 * K] == [2 * K, 2 * K]


def test_the_last_rank_has_its_partition_from_the_first_gradients_on(log):
    halves = (LARGE, LARGE)
    for last in (False, True):
        log.events.clear()
        work = workload("2x24GB", method="full", precision="bf16", sharding="zero2")
        made = Partitioning(log, work, halves, last=last)
        made.begin(first=True, last=True)
        for _ in halves:
            key = log.allocate(2 * LARGE)
            made.arrived(2 * LARGE)
            assert made.takes([key])
        assert any(stream == REDUCTION for _, stream in live(log)) == last


def test_a_gradient_larger_than_a_bucket_waits_where_it_lies_and_is_recorded(log):
    made = partitioning(log)
    made.begin(first=True, last=True)
    key = log.allocate(2 * LARGE)
    made.arrived(2 * LARGE)
    assert made.takes([key])
    assert (2 * LARGE, COMPUTE) in live(log)
    made.end()
    assert [(event.key, event.stream) for event in log.events if event.kind == Kind.RECORD] == [(key, REDUCTION)]
    assert (2 * LARGE, COMPUTE) not in live(log)


def test_a_bucket_given_by_its_elements_takes_what_else_were_too_large(log):
    made = partitioning(log, zero_reduce_bucket=LARGE + OTHER)
    made.begin(first=True, last=True)
    key = log.allocate(2 * LARGE)
    made.arrived(2 * LARGE)
    assert not made.takes([key])
    assert live(log) == sorted([(2 * LARGE, COMPUTE), *[(2 * (LARGE + OTHER), COMPUTE)] * 2])


@pytest.mark.parametrize("sharding", ["zero1", "zero2"])
def test_without_overlap_one_bucket_is_reduced_on_the_stream_of_the_kernels(log, sharding):
    made = partitioning(log, sharding, zero_overlap=False)
    made.begin(first=True, last=True)
    backward(log, made)
    assert sizes(log).count(2 * K) == 1
    assert live(log) == [(2 * LARGE, COMPUTE)]


def test_a_bucket_of_several_ranks_gradients_is_reduced_as_one_tensor(log):
    made = partitioning(log, zero_reduce_bucket=sum(ORDER))
    made.begin(first=True, last=True)
    backward(log, made)
    on_it = [event.size for event in log.events if (event.kind, event.stream) == (Kind.ALLOC, REDUCTION)]
    assert on_it == [2 * sum(ORDER), 2 * LARGE]


def test_without_overlap_stage_1_reduces_when_all_gradients_are_there(log):
    made = partitioning(log, "zero1", zero_overlap=False)
    made.begin(first=True, last=True)
    for elements in reversed(ORDER):
        key = log.allocate(2 * elements)
        made.arrived(2 * elements)
        assert made.takes([key])
    assert [size for size, _ in live(log)] == sorted(2 * each for each in (*ORDER, K))
    made.end()
    # The large one is the first, and of the first rank: its partition stands beside all others.
    assert replay(log.events).peak_allocated_bytes >= 2 * (sum(ORDER) + K + LARGE)
    assert live(log) == [(2 * LARGE, COMPUTE)]


@pytest.mark.parametrize("overlap", [True, False])
def test_accumulated_gradients_of_stage_1_leave_as_they_are_reduced(log, overlap):
    made = partitioning(log, "zero1", accumulation=3, zero_overlap=overlap)
    for place in range(3):
        made.begin(first=place == 0, last=place == 2)
        backward(log, made)
    assert [size for size, _ in live(log)] == [2 * LARGE]


def test_the_step_leaves_the_states_alone(log):
    made = partitioning(log, optimizer="adamw_torch")
    made.begin(first=True, last=True)
    backward(log, made)
    share = sum(ORDER) / 2
    made.step(first=True)
    states = live(log)
    made.begin(first=True, last=True)
    backward(log, made)
    made.step(first=False)
    assert live(log) == states
    assert {stream for _, stream in states} == {COMPUTE}
    # The norm of the part of a gradient that is the rank's own is taken in fp64.
    assert 8 * share in sizes(log)


def test_stage_1_keeps_whole_gradients_and_its_buckets_between_micro_batches(log):
    made = partitioning(log, "zero1")
    made.begin(first=True, last=False)
    backward(log, made)
    kept = sorted(2 * each for each in (*ORDER, K, K))
    assert [size for size, _ in live(log)] == kept
    made.begin(first=False, last=False)
    backward(log, made)
    assert [size for size, _ in live(log)] == kept
    made.begin(first=False, last=True)
    backward(log, made)
    assert live(log) == [(2 * LARGE, REDUCTION)]


def test_offloaded_gradients_leave_after_their_norm_and_an_fp32_copy(log):
    made = partitioning(log, offload="optimizer")
    made.begin(first=True, last=True)
    backward(log, made)
    made.step(first=True)
    assert live(log) == []
    assert [size for size in sizes(log) if size in (8 * LARGE, 4 * LARGE)] == [8 * LARGE, 4 * LARGE]


@pytest.mark.parametrize("on_device", [True, False])
def test_where_the_card_has_room_the_flat_weights_are_made_beside_the_others(log, on_device):
    made = partitioning(log)
    weights = log.allocate_all(2 * each for each in ORDER)
    made.flatten(weights, on_device=on_device)
    whole = 2 * sum(ORDER)
    flat = next(place for place, event in enumerate(log.events) if (event.kind, event.size) == (Kind.ALLOC, whole))
    freed = [place for place, event in enumerate(log.events) if event.kind == Kind.FREE and event.key in weights]
    assert len(freed) == len(ORDER)
    assert all((place > flat) == on_device for place in freed)
    assert live(log) == sorted([(whole, COMPUTE), (4 * sum(ORDER) // 2, COMPUTE)])


@pytest.mark.parametrize("sharding", ["zero1", "zero2"])
@pytest.mark.parametrize("more", [{}, {"offload": "optimizer"}, {"accumulation": 4}, {"method": "lora"}])
@pytest.mark.parametrize("zero", [{}, {"zero_overlap": False}, {"zero_reduce_bucket": 10**6}])
def test_whole_runs_free_what_they_allocate(sharding, more, zero):
    work = workload("2x24GB", **{"method": "full", "precision": "bf16", "sharding": sharding, **more, **zero})
    events = run_events(work, work.cluster.gpus[0])
    told = replay(events)
    assert 0 < told.end_allocated_bytes < told.peak_allocated_bytes <= told.peak_reserved_bytes


def test_one_card_under_deepspeed_has_a_process_group_too():
    for stage in ("1", "2", "3"):
        one, several = (
            runtime_figure("deepspeed_bytes", f"{stage} on one card"),
            runtime_figure("deepspeed_bytes", stage),
        )
        assert several.value < one.value < several.value + runtime_figure("nccl_bytes").value
