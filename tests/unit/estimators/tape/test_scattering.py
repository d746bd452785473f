"""ZeRO-3's allocations: gradients of 4, 100 and 5 K elements (K = 64 x 64, the bucket) in 16 bit on two ranks."""

import pytest
from small import EMBEDDING, PARAMS, workload

from ftplan.estimators.tape.log import COMPUTE, GATHERS, Log
from ftplan.estimators.tape.replaying import replayable, run_events
from ftplan.estimators.tape.scattering import REDUCTION, Scattering
from ftplan.estimators.trace.replay import replay
from ftplan.estimators.trace.stream import Kind

K = 64 * 64
SMALL, OTHER, LARGE = 4, 100, 5 * K
ORDER = (LARGE, SMALL, OTHER)


@pytest.fixture
def log():
    return Log()


def zero3(gpus="2x24GB", **fields):
    given = {"method": "full", "weights_dtype": "bf16", "precision": "bf16", "sharding": "zero3"}
    return workload(gpus, **{**given, **fields})


def backward(log, made, order=ORDER):
    """Each gradient is made, is complete, and would be freed; what is left before the end, and after it."""
    for elements in reversed(order):
        key = log.allocate(2 * elements)
        made.arrived(2 * elements)
        if not made.takes([key]):
            log.free([key])
    before = live(log)
    made.end()
    return before, live(log)


def live(log):
    left = {event.key: (event.size, event.stream) for event in log.events if event.kind == Kind.ALLOC}
    for event in log.events:
        if event.kind == Kind.FREE:
            del left[event.key]
    return sorted(left.values())


def sizes(log, stream):
    return [event.size for event in log.events if event.kind == Kind.ALLOC and event.stream == stream]


def test_a_gradient_larger_than_the_bucket_stays_until_the_next_comes(log):
    assert backward(log, Scattering(log, zero3(), ORDER)) == ([(2 * LARGE, COMPUTE)], [])
    log.events.clear()
    assert backward(log, Scattering(log, zero3(), ORDER), ORDER[::-1]) == ([], [])


def test_several_gradients_are_reduced_as_one_tensor(log):
    backward(log, Scattering(log, zero3(), ORDER))
    assert sizes(log, REDUCTION) == [2 * (SMALL + OTHER)]


def test_a_larger_bucket_takes_more_before_it_is_reduced(log):
    backward(log, Scattering(log, zero3(zero_reduce_bucket=10 * K), ORDER))
    assert sizes(log, REDUCTION) == [2 * sum(ORDER)]


def test_without_overlap_all_is_on_the_stream_of_the_kernels():
    work = zero3(zero_overlap=False)
    events = run_events(work, work.cluster.gpus[0])
    assert {event.stream for event in events if event.kind == Kind.ALLOC} == {COMPUTE}


def test_offloaded_gradients_go_by_way_of_the_device(log):
    backward(log, Scattering(log, zero3(offload="optimizer+params"), (LARGE,)), (LARGE,))
    part = LARGE // 2
    assert sizes(log, REDUCTION) == [2 * part, 8 * part, 4 * part]


def test_the_step_converts_the_flat_gradients_and_leaves_only_states(log):
    made = Scattering(log, zero3(optimizer="adamw_torch_fused"), ORDER)
    made.step(first=True)
    states = sum(size for size, _ in live(log))
    assert states == 2 * 4 * PARAMS // 2
    made.step(first=False)
    assert sum(size for size, _ in live(log)) == states


def test_offloaded_nothing_of_the_step_is_on_the_device(log):
    Scattering(log, zero3(offload="optimizer+params"), ORDER).step(first=True)
    assert not log.events


@pytest.mark.parametrize("fields", [{}, {"method": "lora", "rank": 64}, {"offload": "optimizer+params"}])
def test_a_run_gathers_on_a_stream_of_its_own_and_gives_all_of_it_back(fields):
    rank = fields.pop("rank", 8)
    work = zero3(lora_rank=rank, **fields)
    assert replayable(work)
    events = run_events(work, work.cluster.gpus[0])
    streams = {event.key: event.stream for event in events if event.kind == Kind.ALLOC}
    for event in events:
        if event.kind == Kind.FREE:
            del streams[event.key]
    assert GATHERS in {event.stream for event in events}
    assert set(streams.values()) == {COMPUTE}


def test_more_ranks_need_no_more(log):
    few, many = (
        replay(run_events(zero3(gpus), zero3(gpus).cluster.gpus[0])).peak_allocated_bytes
        for gpus in ("2x24GB", "8x24GB")
    )
    assert many < few


def test_the_embedding_arrives_whole_and_its_part_stays():
    events = run_events(zero3(), zero3().cluster.gpus[0])
    assert [event.size for event in events[:2]] == [2 * EMBEDDING, 2 * EMBEDDING // 2]
    assert events[2].kind == Kind.FREE
    assert events[2].key == events[0].key
