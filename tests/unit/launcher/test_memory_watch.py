from __future__ import annotations

from typing import Any

import pytest
from jobs import make_config, make_job

from ftplan.launcher.events import RankMemory, Warned
from ftplan.launcher.job import DataSource, TrainJob
from ftplan.launcher.memory_watch import MemoryWatch

TOKENS = 4 * 128
"""Of a micro-batch of the job."""


def rank(number: int, allocated: int | None, process: int) -> RankMemory:
    return RankMemory(number, allocated, None, process, None)


def gpu_job(**changes: Any) -> TrainJob:
    predicted = (rank(0, 1000, 2000), rank(1, 1000, 2000))
    return make_job(make_config(sharding="ddp"), **{"device": "cuda", "predicted_ranks": predicted} | changes)


def stepped(watch: MemoryWatch, step: int, *allocated: int, tokens: int = TOKENS) -> list[tuple[int, str, int]]:
    memory = [rank(number, size, 2000) for number, size in enumerate(allocated)]
    return told(list(watch.stepped(step, memory, [tokens] * len(memory))))


def told(warnings: list[Warned]) -> list[tuple[int, str, int]]:
    return [(warned.rank, warned.figure, warned.measured_bytes) for warned in warnings]


def test_more_than_predicted_is_told_at_once_and_by_rank() -> None:
    watch = MemoryWatch(gpu_job())
    assert stepped(watch, 1, 1030, 1031) == [(1, "allocated", 1031)]


def test_it_is_told_again_when_it_has_grown_as_much_once_more() -> None:
    watch = MemoryWatch(gpu_job())
    assert stepped(watch, 1, 1040, 900) == [(0, "allocated", 1040)]
    assert stepped(watch, 2, 1040, 900) == []
    assert stepped(watch, 3, 1071, 900) == []
    assert stepped(watch, 4, 1072, 900) == [(0, "allocated", 1072)]


def test_what_the_device_has_in_use_counts_too() -> None:
    (warned,) = MemoryWatch(gpu_job()).stepped(1, [rank(0, 900, 2100)], [TOKENS])
    assert (warned.figure, warned.predicted_bytes, warned.step) == ("process", 2000, 1)
    assert warned.message == "the run may end out of memory"


def test_less_than_predicted_is_told_at_the_end_only() -> None:
    watch = MemoryWatch(gpu_job())
    assert [stepped(watch, step, 960, 980) for step in (1, 2, 3)] == [[], [], []]
    (warned,) = watch.ended(3, (rank(0, 960, 1500), rank(1, 980, 1500)))
    assert (warned.rank, warned.figure, warned.measured_bytes) == (0, "allocated", 960)
    assert warned.message == "the estimate was too high"


def test_a_few_steps_tell_nothing_about_too_much() -> None:
    watch = MemoryWatch(gpu_job())
    stepped(watch, 1, 500, 500)
    stepped(watch, 2, 500, 500)
    assert list(watch.ended(2, (rank(0, 500, 1500), rank(1, 500, 1500)))) == []


@pytest.mark.parametrize(("evaluates", "warnings"), [(True, 1), (False, 0)])
def test_a_run_that_evaluates_is_judged_with_its_evaluations(evaluates: bool, warnings: int) -> None:
    watch = MemoryWatch(gpu_job(data=DataSource(paths=("a.jsonl",), eval_fraction=0.1)))
    for step in (1, 2, 3):
        stepped(watch, step, 500)
    if evaluates:
        watch.evaluated()
    assert len(list(watch.ended(3, (rank(0, 500, 1500),)))) == warnings


def test_short_samples_explain_less_and_make_more_worse() -> None:
    watch = MemoryWatch(gpu_job())
    for step in (1, 2, 3):
        stepped(watch, step, 500, 500, tokens=300)
    (low, _) = watch.ended(3, (rank(0, 500, 1500), rank(1, 500, 1500)))
    assert low.message == "as to be expected: its largest micro-batch had 300 of the planned 512 tokens"
    (high,) = watch.stepped(4, (rank(0, 1100, 1500),), [300])
    assert high.message.endswith("had 300 of the planned 512 tokens, and longer ones take more")


def test_on_a_cpu_only_much_more_means_anything() -> None:
    job = make_job(predicted_ranks=(rank(0, None, 1000), rank(1, None, 1000)))
    watch = MemoryWatch(job)
    memory = (rank(0, None, 1250), rank(1, None, 1251))
    assert told(list(watch.stepped(1, memory, [TOKENS] * 2))) == [(1, "process", 1251)]
    for step in (2, 3, 4):
        assert list(watch.stepped(step, memory, [TOKENS] * 2)) == []
    assert list(watch.ended(4, (rank(0, None, 100), rank(1, None, 100)))) == []
    profiled = MemoryWatch(job.model_copy(update={"profile": True}))
    assert list(profiled.stepped(1, memory, [TOKENS] * 2)) == []


def test_a_prediction_for_other_ranks_is_none() -> None:
    elsewhere = gpu_job(predicted_ranks=(rank(0, 1, 1),))
    assert elsewhere.prediction_of(0) is None
    assert stepped(MemoryWatch(elsewhere), 1, 1040, 1040) == []
    assert stepped(MemoryWatch(gpu_job(predicted_ranks=())), 1, 1040, 1040) == []
