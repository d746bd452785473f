from __future__ import annotations

import json
from dataclasses import replace

from jobs import make_job

from ftplan.launcher.events import (
    Event,
    Finished,
    FlopsCounted,
    Profiled,
    RankMemory,
    Started,
    Stepped,
    Warned,
    from_line,
    to_line,
)
from ftplan.launcher.summary import measure, summarise
from ftplan.results import CountedFlops, RunRecord, RunWarning, from_json, to_json, to_jsonable


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


def test_utilisation_is_that_of_the_steady_steps() -> None:
    steps = [replace(step(number, 7.0, 1.0), mfu=mfu) for number, mfu in enumerate((0.01, 0.02, 0.4, 0.5, 0.6), 1)]
    assert measure(steps, ranks_per_node=1).mfu == 0.5
    assert measure([step(1, 7.0, 1.0)], ranks_per_node=1).mfu is None


def test_warnings_and_what_instruments_found_are_on_record() -> None:
    warned = Warned("memory", 1, "allocated", 3, 21, 20, "the run may end out of memory")
    counted = FlopsCounted(3, 512, 90, {"aten.mm": 90}, 88.0)
    events = [step(1, 7.0, 1.0), warned, counted, Profiled(3, 5, ("a.json.gz", "b.json.gz"))]
    assert [from_line(to_line(event)) for event in events] == events
    record = summarise(make_job(), "finished", [], events, wall_seconds=1.0)
    assert record.warnings == (RunWarning("memory", 1, "allocated", 3, 21, 20, "the run may end out of memory"),)
    assert record.flops == CountedFlops(3, 512, 90, {"aten.mm": 90}, 88.0)
    assert record.profiles == ("a.json.gz", "b.json.gz")
    assert from_json(RunRecord, to_json(record)) == record


def test_records_and_events_of_an_older_version_can_be_read() -> None:
    event = json.loads(to_line(step(1, 7.0, 1.0)))
    for name in ("mfu", "tokens_seen", "samples_seen", "elapsed_seconds", "eta_seconds"):
        assert event.pop(name) is None
    assert from_line(json.dumps(event).encode()) == step(1, 7.0, 1.0)
    record = summarise(make_job(), "finished", [], [step(1, 7.0, 1.0)], wall_seconds=1.0)
    document = to_jsonable(record)
    for name in ("warnings", "flops", "profiles"):
        del document[name]
    del document["measured"]["mfu"], document["predicted"]["mfu"]
    assert from_json(RunRecord, json.dumps(document)) == record
