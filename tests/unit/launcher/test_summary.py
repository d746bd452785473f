from __future__ import annotations

from jobs import make_job

from ftplan.launcher.events import Event, Finished, RankMemory, Started, Stepped
from ftplan.launcher.summary import measure, summarise


def step(number: int, loss: float, seconds: float, *memory: RankMemory) -> Stepped:
    return Stepped(number, 60, 0.1, loss, 1e-3, 1.0, seconds, 100 / seconds, memory)


ON_GPU = (RankMemory(0, 10, 20, 30, 5), RankMemory(1, 11, 19, 33, 6))


def test_the_worst_rank_and_the_median_of_the_steady_steps() -> None:
    steps = [step(1, 7.0, 9.0, *ON_GPU), step(2, 6.0, 5.0, *ON_GPU)]
    steps += [step(3, 5.0, 1.0, *ON_GPU), step(4, 4.0, 2.0, *ON_GPU), step(5, 3.0, 3.0, *ON_GPU)]
    measured = measure(steps, ranks_per_node=2)
    assert (measured.peak_allocated_bytes, measured.peak_reserved_bytes) == (11, 20)
    assert (measured.peak_process_bytes, measured.host_bytes) == (33, 11)
    assert (measured.step_seconds, measured.tokens_per_second) == (2.0, 50.0)


def test_host_memory_is_that_of_the_fullest_node() -> None:
    ranks = [RankMemory(rank, None, None, 1, host) for rank, host in enumerate((5, 6, 20, 1))]
    assert measure([step(1, 7.0, 1.0, *ranks)], ranks_per_node=2).host_bytes == 21


def test_what_was_not_measured_is_none() -> None:
    measured = measure([], ranks_per_node=1)
    assert measured.peak_allocated_bytes is None
    assert measured.host_bytes is None
    assert measured.step_seconds is None


def test_a_resumed_run_keeps_the_first_loss_of_all() -> None:
    earlier: list[Event] = [step(1, 7.0, 1.0), step(2, 6.0, 1.0)]
    now: list[Event] = [
        Started(60, 2, 16, 178, 10, 1, (1, 2), resumed_from_step=1, versions={"torch": "2"}),
        step(2, 6.0, 1.0),
        step(3, 5.0, 1.0),
        Finished(3, "finished", ()),
    ]
    record = summarise(make_job(), "finished", now, earlier + now, wall_seconds=4.0)
    assert (record.first_loss, record.last_loss, record.steps) == (7.0, 5.0, 3)
    assert (record.resumed_from_step, record.versions, record.wall_seconds) == (1, {"torch": "2"}, 4.0)
