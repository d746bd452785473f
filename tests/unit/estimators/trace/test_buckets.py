"""DDP's buckets in a stream."""

from ftplan.estimators.trace.buckets import BUCKET_BYTES, with_buckets
from ftplan.estimators.trace.record import NO_LAYER, Recording
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.results import Phase

MIB = 1 << 20
PHASES = list(Phase)


def stream(sizes: list[int], steps: int = 2) -> Recording:
    recording = Recording()
    for _ in range(steps):
        events = [Event(Kind.MARK, PHASES.index(Phase.FORWARD))]
        events += [Event(Kind.READY, 2, size) for size in sizes]
        events += [Event(Kind.MARK, PHASES.index(Phase.OPTIMIZER))]
        recording.events += events
    recording.labels = [NO_LAYER] * len(recording.events)
    recording.loose = [True] * len(recording.events)
    return recording


def sizes_of(recording: Recording) -> list[int]:
    return [event.size for event in recording.events if event.kind is Kind.ALLOC]


def test_one_bucket_first_and_small_ones_from_the_second_step_on():
    placed = with_buckets(stream([MIB // 2, MIB, 20 * MIB, 10 * MIB, MIB]))
    assert sizes_of(placed) == [32 * MIB + MIB // 2, MIB + MIB // 2, 30 * MIB, MIB]
    freed = [event.key for event in placed.events if event.kind is Kind.FREE]
    assert freed == [0]


def test_buckets_hold_every_gradient_once():
    sizes = [3 * MIB + 17 * number for number in range(60)]
    placed = with_buckets(stream(sizes))
    assert sizes_of(placed)[0] == sum(sizes) == sum(sizes_of(placed)[1:])
    assert all(size < BUCKET_BYTES + max(sizes) for size in sizes_of(placed)[1:])


def test_dtypes_are_kept_apart():
    recording = stream([MIB, 2 * MIB], steps=1)
    recording.events[1] = Event(Kind.READY, 4, MIB)
    assert sizes_of(with_buckets(recording)) == [MIB, 2 * MIB]
