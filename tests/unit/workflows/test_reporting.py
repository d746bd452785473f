"""Reports of runs in every state, from their folders alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from run_folders import memory, run_folder, save, started, stepped

from ftplan import cli
from ftplan.errors import InputError
from ftplan.launcher import records
from ftplan.launcher.events import Event, Failed, Finished
from ftplan.render import console
from ftplan.workflows.reporting import RunReport, Runs, report, way_on

STEPS: list[Event] = [started(), *map(stepped, range(1, 31)), save(20)]
ON: list[Event] = [started(1, 20), *map(stepped, range(21, 61)), save(40), save(60)]
DONE = Finished(60, "finished", memory(60))
FAILED = Failed(1, "out_of_memory", "CUDA out of memory", "a smaller micro-batch")


def of(folder: Path) -> RunReport:
    found = report(folder)
    assert isinstance(found, RunReport)
    return found


def test_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [*STEPS, *ON, DONE], "finished", saved=(40, 60))
    run.final.mkdir()
    (run.final / "adapter_config.json").write_text("{}")
    (run.checkpoints / "checkpoint-65").mkdir()
    told = of(run.root)
    assert (told.state, told.steps, told.total_steps, told.global_batch) == ("finished", 60, 60, 16)
    assert [(one.first_step, one.last_step, one.resumed_from_step, one.ended) for one in told.attempts] == [
        (1, 30, None, "ended without a word: killed"),
        (21, 60, 20, "finished"),
    ]
    assert told.attempts[1].changes == ("processes 2 -> 1",)
    assert [(one.step, one.size_bytes > 1000) for one in told.checkpoints] == [(60, True), (40, True)]
    assert told.incomplete == (str(run.checkpoints / "checkpoint-65"),)
    assert told.save_seconds == (0.5, 0.5, 0.5)
    assert told.train_seconds == pytest.approx(70 * 0.3)
    assert told.measured.step_seconds == pytest.approx(0.3)
    assert told.curves[0].steps == tuple(range(1, 61))
    assert told.way_on == f"ftplan merge {run.root} --out DIR"


def test_what_cannot_be_merged_is_not_to_be_merged(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [*STEPS, DONE], "finished")
    run.final.mkdir()
    config = of(run.root).config.model_copy(update={"method": "llama-adapter"})
    assert way_on(run, "finished", config) == ""


@pytest.mark.parametrize(
    ("events", "status", "saved", "state", "resumes"),
    [
        ([*STEPS, FAILED], "failed", (20,), "failed", True),
        ([*STEPS, FAILED], "failed", (), "failed", False),
        (STEPS, "interrupted", (20,), "interrupted", True),
        (STEPS, "running", (20,), "running", False),
        ([], None, (), "not started", False),
    ],
    ids=["failed", "failed before a checkpoint", "interrupted", "running", "not started"],
)
def test_runs_that_are_not_finished(
    events: list[Event],
    status: records.Status | None,
    saved: tuple[int, ...],
    state: str,
    resumes: bool,
    tmp_path: Path,
) -> None:
    run = run_folder(tmp_path / "a run", events, status, saved)
    told = of(run.root)
    assert told.state == state
    assert told.way_on == (f"ftplan run --resume --run-dir '{run.root}'" if resumes else "")
    if FAILED in events:
        assert told.attempts[-1].ended == "failed on rank 1: CUDA out of memory"


def test_a_run_whose_process_is_gone_is_abandoned(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", STEPS, "running", saved=(20,))
    state = json.loads(run.state.read_text())
    # The largest id a process can have belongs to none.
    run.state.write_text(json.dumps(state | {"pid": 2**22 - 1}))
    told = of(run.root)
    assert told.state == "abandoned"
    assert told.way_on.startswith("ftplan run --resume")


def test_only_the_job_is_needed_and_half_lines_are_counted(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", STEPS, "running")
    run.metrics.write_bytes(run.metrics.read_bytes() + b'{"step": 31, "to\n')
    run.plan.write_text("damaged")
    run.record.write_text("damaged")
    assert of(run.root).unreadable_lines == 1
    run.metrics.unlink()
    run.state.unlink()
    told = of(run.root)
    assert (told.steps, told.curves, told.attempts, told.total_steps) == (0, (), (), 60)


def test_a_folder_of_runs_is_listed_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "ftplan-runs"
    for number, name in enumerate(("b", "a")):
        run = run_folder(runs / name, STEPS, "failed")
        os.utime(run.job, (number, number))
    (runs / "broken").mkdir()
    (runs / "broken" / "job.json").write_text("{}")
    found = report(runs)
    assert isinstance(found, Runs)
    assert [(Path(run.folder).name, run.state, run.steps) for run in found.runs] == [
        ("b", "failed", 30),
        ("a", "failed", 30),
        ("broken", None, 0),
    ]
    assert "is not a job of this ftplan" in found.runs[2].problem
    # Without an argument, the newest of the usual place.
    (runs / "broken" / "job.json").unlink()
    monkeypatch.chdir(tmp_path)
    newest = report(None)
    assert isinstance(newest, RunReport)
    assert Path(newest.folder).name == "a"


def test_where_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run in ftplan-runs"):
        report(None)
    with pytest.raises(InputError, match="no run in gone"):
        report(Path("gone"))


def test_every_state_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.out.cache_clear()
    run_folder(tmp_path / "1", [], None)
    run_folder(tmp_path / "2", [*STEPS, FAILED], "failed", saved=(20,))
    assert cli.run(["report", str(tmp_path / "1")]) == 0
    assert cli.run(["report", str(tmp_path / "2"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "not started" in out
    assert json.loads(out[out.index("{") :])["state"] == "failed"
    console.out.cache_clear()


def test_a_narrow_terminal_breaks_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder(tmp_path / "runs" / "one", [*STEPS, *ON, DONE], "finished", saved=(60,))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "50")
    console.out.cache_clear()
    try:
        assert cli.run(["report", "runs/one"]) == 0
        shown = capsys.readouterr().out
        assert "…" not in shown
        assert "attempt 2 from step 20 · steps 21 to 60 · 1 process(es)" in " ".join(shown.split())
        assert cli.run(["report", "runs"]) == 0
        assert "one finished · 60/60 steps · loss" in " ".join(capsys.readouterr().out.split())
    finally:
        console.out.cache_clear()
