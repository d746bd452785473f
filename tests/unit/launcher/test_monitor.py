from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ftplan.launcher import monitor
from ftplan.launcher.events import (
    Evaluated,
    Event,
    Failed,
    Finished,
    Noted,
    RankMemory,
    Saved,
    Started,
    Stepped,
    from_line,
    to_line,
)

MEMORY = (RankMemory(0, 1, 2, 3, 4), RankMemory(1, None, None, 5, 6))
EVENTS: list[Event] = [
    Started(60, 2, 16, 178, 1_000_000, 1000, (10, 11), resumed_from_step=20, versions={"torch": "2"}),
    Noted("no chat template"),
    Stepped(1, 60, 0.1, 7.25, 1e-3, None, 0.5, 100.0, MEMORY),
    Evaluated(1, 6.5),
    Saved(1, "checkpoints/checkpoint-1", 0.1),
    Failed(1, "out_of_memory", "out of memory", "a smaller micro-batch"),
    Finished(60, "finished", MEMORY),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_events_survive_their_line(event: Event) -> None:
    assert from_line(to_line(event)) == event


def test_a_line_that_is_no_event() -> None:
    with pytest.raises(ValidationError):
        from_line(b'{"event": "exploded"}')


def test_events_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    following = monitor.Monitor(path)
    assert list(following.read()) == []
    with path.open("ab") as file:
        for event in EVENTS:
            file.write(to_line(event))
            file.flush()
            assert list(following.read()) == [event]
    assert list(following.read()) == []
    assert monitor.read_all(path) == EVENTS


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = to_line(EVENTS[2])
    following = monitor.Monitor(path)
    for end in range(1, len(line)):
        path.write_bytes(line[:end])
        assert list(following.read()) == []
    path.write_bytes(line + to_line(EVENTS[3])[:7])
    assert list(following.read()) == [EVENTS[2]]
    assert following.unreadable_lines == 0


def test_a_line_cut_off_by_a_kill_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(to_line(EVENTS[0]) + to_line(EVENTS[2])[:20] + b"\n\n" + to_line(EVENTS[3]))
    following = monitor.Monitor(path)
    assert list(following.read()) == [EVENTS[0], EVENTS[3]]
    assert following.unreadable_lines == 1


def test_an_earlier_attempt_is_not_told_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert monitor.size_of(path) == 0
    path.write_bytes(to_line(EVENTS[0]))
    following = monitor.Monitor(path, offset=monitor.size_of(path))
    with path.open("ab") as file:
        file.write(to_line(EVENTS[1]))
    assert list(following.read()) == [EVENTS[1]]
