from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from jobs import make_job

from ftplan.launcher import checkpoints, engine, records
from ftplan.launcher.records import RunDir, RunState
from ftplan.launcher.summary import summarise


def a_run(root: Path, name: str, status: records.Status, *, step: int | None = 10) -> RunDir:
    run = RunDir(root / name)
    records.write_state(run, status, attempt=1)
    if step is not None:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
        checkpoints.seal(folder, step=step, world_size=1, global_batch=1)
    return run


def test_run_ids_sort_by_time_and_differ() -> None:
    moment = datetime(2025, 1, 31, 12, 0, 0, tzinfo=UTC)
    assert records.new_run_id(moment, "3f2a") == "20250131-120000-3f2a"
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", records.new_run_id())
    assert len({records.new_run_id(moment) for _ in range(20)}) > 1


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    records.write_json(tmp_path / "deep" / "a.json", {"ü": 1})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert (tmp_path / "deep" / "a.json").read_text() == '{\n  "ü": 1\n}\n'


def test_state_survives_its_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert records.read_state(run) is None
    records.write_state(run, "running", attempt=3)
    state = records.read_state(run)
    assert state is not None
    assert (state.status, state.pid, state.attempt) == ("running", os.getpid(), 3)
    run.state.write_text('{"status": "runn')
    assert records.read_state(run) is None


def test_a_run_whose_launcher_is_gone_is_abandoned(tmp_path: Path) -> None:
    run, here = RunDir(tmp_path), os.uname().nodename
    gone = 2**22 + 1  # above the highest process id Linux gives out
    assert records.is_abandoned(run, RunState("running", gone, here))
    assert not records.is_abandoned(run, RunState("running", os.getpid(), here))
    assert not records.is_abandoned(run, RunState("running", gone, "another-host"))
    assert not records.is_abandoned(run, RunState("finished", gone, here))


def test_a_run_is_abandoned_when_its_lock_is_free(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    # A process that got the id of the launcher, as the first of a container does again.
    state = RunState("running", os.getpid(), os.uname().nodename)
    with engine.locked(run):
        assert not records.is_abandoned(run, state)
    assert records.is_abandoned(run, state)
    run.lock.unlink()
    run.lock.mkdir()
    assert not records.is_abandoned(run, state)


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.state.mkdir()
    assert records.read_state(run) is None


def test_the_newest_run_that_can_go_on(tmp_path: Path) -> None:
    a_run(tmp_path, "a", "failed")
    expected = a_run(tmp_path, "b", "interrupted")
    a_run(tmp_path, "c", "finished")
    a_run(tmp_path, "d", "failed", step=None)
    a_run(tmp_path, "e", "running")
    for age, name in enumerate("edcba"):
        os.utime(tmp_path / name / "state.json", ns=(10**18 - age, 10**18 - age))
    assert records.newest_resumable(tmp_path) == expected
    assert records.newest_resumable(tmp_path / "nothing") is None


def test_records_survive_their_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert records.read_record(run) is None
    record = summarise(make_job(), "finished", [], [], wall_seconds=1.5)
    records.write_record(run, record)
    assert records.read_record(run) == record
