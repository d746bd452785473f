"""Attempts and curves from the events of a run."""

from __future__ import annotations

import pytest
from run_folders import MIB, save, started, stepped

from ftplan.launcher import history
from ftplan.launcher.events import Evaluated, Event, Failed, Finished, Noted, RankMemory, Recovering

LOST = Failed(1, "error", "connection closed")
OUT_OF_MEMORY = Failed(0, "out_of_memory", "CUDA out of memory")
DONE = Finished(60, "finished", ())
FIRST: list[Event] = [Noted("a note"), started(), *map(stepped, range(1, 28)), save(20)]
SECOND: list[Event] = [started(1, 20, torch="2.14.0"), *map(stepped, range(21, 61)), save(40), DONE]


def test_attempts_begin_where_training_starts_again() -> None:
    first, second = history.attempts([*FIRST, *SECOND])
    assert [event for attempt in (first, second) for event in attempt.events] == [*FIRST, *SECOND]
    assert (first.number, second.number) == (1, 2)
    assert first.ended is None
    assert second.ended == DONE
    assert (first.steps[-1].step, second.steps[0].step) == (27, 21)
    assert history.changes(second, first) == ("processes 2 -> 1", "torch 2.13.0 -> 2.14.0")


def test_several_ranks_fail_once_and_the_cause_is_told() -> None:
    tries = history.attempts([started(), LOST, OUT_OF_MEMORY, started(2, None), DONE])
    assert [attempt.ended for attempt in tries] == [OUT_OF_MEMORY, DONE]


def test_a_lost_rank_is_no_cause_where_an_error_is_told() -> None:
    cause = Failed(0, "error", "a bug")
    (attempt,) = history.attempts([started(), Failed(1, "lost_rank", "connection closed"), cause])
    assert attempt.ended == cause


def test_recovering_begins_an_attempt_and_tells_what_changed() -> None:
    recovering = Recovering("killed", "rank 0 was killed", 20, {"micro_batch": (8, 4), "liger": (False, True)})
    again: list[Event] = [recovering, started(2, 20), *map(stepped, range(21, 24))]
    once_more: list[Event] = [recovering, started(1, 20), DONE]
    tries = history.attempts([*FIRST, *again, *once_more])
    assert [attempt.events for attempt in tries] == [FIRST, again, once_more]
    assert history.changes(tries[1], tries[0]) == ("micro batch 8 -> 4", "liger False -> True")
    assert history.changes(tries[2], tries[1])[2:] == ("processes 2 -> 1",)


def test_an_attempt_that_fails_before_it_trains_is_one() -> None:
    tries = history.attempts([LOST, started(), stepped(1)])
    assert [(attempt.started is None, attempt.ended) for attempt in tries] == [(True, LOST), (False, None)]


def test_of_a_step_that_was_trained_twice_the_later_value_counts() -> None:
    events: list[Event] = [stepped(1, 5.0), stepped(2, 4.0), stepped(2, 3.0), Evaluated(2, 6.0)]
    loss, *_, held_out = history.curves(events)
    assert (loss.name, loss.steps, loss.values) == ("loss", (1, 2), (5.0, 3.0))
    assert (held_out.name, held_out.values) == ("held-out loss", (6.0,))
    assert history.curves([]) == ()


def test_time_and_tokens_count_the_steps_between_two_logs() -> None:
    (attempt,) = history.attempts([started(2, 20), stepped(30), stepped(35)])
    assert history.step_seconds(attempt) == pytest.approx(15 * 0.3)
    assert history.tokens(attempt) == round(10 * 0.3 * 2030 + 5 * 0.3 * 2035)
    assert history.saving_seconds([save(1), save(2)]) == (0.5, 0.5)


def test_the_peaks_of_each_rank() -> None:
    peaks = history.worst_memory([stepped(3), stepped(1), Finished(3, "finished", (RankMemory(1, 5, None, 7, None),))])
    assert peaks == (
        RankMemory(0, None, None, 503 * MIB, 503 * MIB),
        RankMemory(1, 5, None, 503 * MIB - 1, 503 * MIB - 1),
    )
