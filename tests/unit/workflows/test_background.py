"""Runs that a page starts: what is started, what it says, how it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import run_folder, started, stepped

from ftplan.errors import InputError
from ftplan.launcher import records
from ftplan.launcher.process import start_detached
from ftplan.workflows import background, planning
from ftplan.workflows.background import Launched


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be started."""
    seen: list[list[str]] = []

    def start(argv: list[str], output: Path) -> subprocess.Popen[bytes]:
        seen.append(list(argv))
        return start_detached([sys.executable, "-c", "print('told')"], output)

    monkeypatch.setattr(background, "start_detached", start)
    return seen


def ended(one: Launched) -> int | None:
    one.process.wait(30)
    return one.exit_code


def test_the_demo_gets_a_folder_of_its_own(starts: list[list[str]], tmp_path: Path) -> None:
    one = background.start_demo(tmp_path)
    assert ended(one) == 0
    # -P: modules that lie in the current folder are not Python's.
    assert starts[0][:5] == [sys.executable, "-P", "-m", "ftplan", "run"]
    assert starts[0][5:] == ["--demo", f"--run-dir={one.folder}"]
    assert one.folder.parent == tmp_path
    assert background.said(one.output) == "told\n"


def test_a_plan_is_given_as_a_file(starts: list[list[str]], tmp_path: Path) -> None:
    chosen = planning.plan(planning.plan_request("1x24GB", model="Qwen/Qwen2.5-0.5B"))
    one = background.start(tmp_path, chosen, "--data.jsonl", {"epochs": 2.0, "learning_rate": None, "max_steps": ""})
    ended(one)
    plan_file = Path(starts[0][5])
    assert planning.load_plan(plan_file).config == chosen.config
    # What begins with two dashes stays the value of its option.
    assert starts[0][6:] == ["--data=--data.jsonl", "--epochs=2.0", f"--run-dir={one.folder}"]


def test_a_plan_needs_data_unless_it_is_rehearsed(starts: list[list[str]], tmp_path: Path) -> None:
    chosen = planning.plan(planning.plan_request("1x24GB", model="Qwen/Qwen2.5-0.5B"))
    with pytest.raises(InputError, match="no data"):
        background.start(tmp_path, chosen, "", {})
    ended(background.start(tmp_path, chosen, "", {}, rehearse=True))
    assert "--rehearse" in starts[0]


def test_where_nothing_fits_nothing_is_launched(tmp_path: Path) -> None:
    chosen = planning.plan(planning.plan_request("1x12GB", model="Llama-3.1-70B", method="full"))
    assert chosen.config is None
    with pytest.raises(InputError, match="no plan"):
        background.start(tmp_path, chosen, "x.jsonl", {})


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot"):
        background.start_demo(tmp_path / "file")
    with pytest.raises(InputError, match="cannot keep"):
        background.kept_data(tmp_path / "file", tmp_path / "file")


def test_only_what_runs_here_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(tmp_path / "run", [started(), stepped(1)], "interrupted")
    with pytest.raises(InputError, match="is not running"):
        background.stop(run.root)
    with pytest.raises(InputError, match="is not running"):
        background.stop(tmp_path / "none")


def test_stopping_is_asked_of_the_run_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file that it looks for after each step: no process is signalled, whatever id the folder tells."""
    run = run_folder(tmp_path / "run", [started(), stepped(1)], "running")
    monkeypatch.setattr(records, "is_abandoned", lambda run, state: False)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was signalled"))
    for _ in range(3):
        background.stop(run.root)
        assert run.stop_request.exists()
        assert background.is_stopping(run.root)


def test_what_another_engine_runs_is_stopped_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(tmp_path / "run", [started(), stepped(1)], "running")
    monkeypatch.setattr(records, "is_abandoned", lambda run, state: False)
    run.job.write_text(run.job.read_text().replace('"engine_env":null', '"engine_env":"/env"'))
    with pytest.raises(InputError, match="LLaMA-Factory"):
        background.stop(run.root)
    assert not run.stop_request.exists()


def test_what_cannot_go_on_is_not_resumed(starts: list[list[str]], tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [started(), stepped(1)], "interrupted")
    with pytest.raises(InputError):
        background.resume(run.root)
    assert starts == []


def test_a_run_goes_on_where_and_on_what_it_is_told(starts: list[list[str]], tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [started(), *map(stepped, range(1, 21))], "interrupted", saved=(20,))
    ended(background.resume(run.root))
    assert starts[0][4:] == ["run", "--resume", f"--run-dir={run.root}"]


def test_data_is_kept_under_a_harmless_name(tmp_path: Path) -> None:
    dropped = tmp_path / "a b<c>.jsonl"
    dropped.write_bytes(b"{}\n")
    kept = background.kept_data(tmp_path, dropped)
    assert kept.read_bytes() == b"{}\n"
    assert kept.parent == tmp_path / background.LAUNCHES
    assert kept.name.endswith("-a_b_c_.jsonl")
    dropped.unlink()
    with pytest.raises(InputError, match="cannot keep"):
        background.kept_data(tmp_path, dropped)


def test_a_progress_bar_is_its_last_state(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\r\n10%\r50%\r90%\nlast \xff")
    assert background.said(log) == "first\n90%\nlast �"
    assert background.said(tmp_path / "none") == ""
    log.write_bytes(b"x" * 50_000)
    assert len(background.said(log)) == background.SAID_CHARACTERS


def test_what_is_started_outlives_who_started_it(tmp_path: Path) -> None:
    """It is in a session of its own: the end of the page's terminal is not its end."""
    process = start_detached(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], tmp_path / "o"
    )
    try:
        deadline = time.monotonic() + 20
        while "up" not in background.said(tmp_path / "o") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert os.getsid(process.pid) == process.pid
    finally:
        process.kill()
        process.wait()
