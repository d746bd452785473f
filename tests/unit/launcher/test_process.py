from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ftplan.launcher.process import LAUNCHER_PID, Child, Outcome
from ftplan.launcher.stopping import StopRequests

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]
SLOW = STUBBORN[2].replace("signal.SIG_IGN", "lambda *_: time.sleep(0.6) or exit()")
"""Takes its time to end, as torchrun does."""


def leader_of(script: str, *, new_session: bool) -> list[str]:
    """A process that dies of SIGTERM at once, as llamafactory-cli does, and leaves another that it prints the id of."""
    start = f"subprocess.Popen([sys.executable, '-c', {script!r}], start_new_session={new_session})"
    return [sys.executable, "-c", f"import subprocess, sys, time; print({start}.pid, flush=True); time.sleep(60)"]


def wait_until_ready(log: Path) -> None:
    deadline = time.monotonic() + 20
    while b"ready" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def left_behind(log: Path) -> int:
    """The id that the leader printed, once what it started is ready."""
    wait_until_ready(log)
    deadline = time.monotonic() + 20
    while not (ids := [word for word in log.read_text().split() if word.isdigit()]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(ids[0])


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return gone(pid)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return True
    return state == "Z"


def test_exit_code_output_and_environment(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = f"import os, sys; print(os.environ['A'], os.environ['{LAUNCHER_PID}']); sys.stderr.write('e'); sys.exit(3)"
    with Child([sys.executable, "-c", script], {"A": "1"}, log) as child:
        outcome = child.wait(20)
    assert outcome == Outcome(3, None)
    assert not outcome.ok
    assert log.read_text() == f"1 {os.getpid()}\ne" or log.read_text() == f"e1 {os.getpid()}\n"


def test_an_answer_is_kept_apart_from_what_libraries_say(tmp_path: Path) -> None:
    log, answer = tmp_path / "log.txt", tmp_path / "answer.txt"
    with Child([sys.executable, "-c", "import sys; print('yes'); sys.stderr.write('noise')"], {}, log, answer) as child:
        assert child.wait(20) == Outcome(0, None)
    assert (answer.read_text(), log.read_text()) == ("yes\n", "noise")


def test_a_second_attempt_appends_to_the_log(tmp_path: Path) -> None:
    for _ in range(2):
        with Child(["echo", "line"], {}, tmp_path / "log.txt") as child:
            assert child.wait(20) == Outcome(0, None)
    assert (tmp_path / "log.txt").read_text() == "line\nline\n"


def test_it_leads_a_session_of_its_own_and_ends_by_a_signal(tmp_path: Path) -> None:
    with Child(SLEEP, {}, tmp_path / "log.txt") as child:
        assert os.getsid(child.pid) == child.pid
        assert child.wait(0.01) is None
        child.terminate()
        assert child.wait(20) == Outcome(None, signal.SIGTERM)


def test_leaving_the_block_ends_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Child(SLEEP, {}, tmp_path / "log.txt") as child:
        raise RuntimeError
    assert gone(child.pid)


def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftplan.launcher.process.GRACE_SECONDS", 0.2)
    with Child(STUBBORN, {}, tmp_path / "log.txt") as child:
        wait_until_ready(tmp_path / "log.txt")
    assert gone(child.pid)


def test_it_has_ended_when_its_group_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with Child(leader_of(SLOW, new_session=False), {}, log) as child:
        left = left_behind(log)
        child.terminate()
        assert child.wait(0.3) is None
        assert not gone(left)
        assert child.wait(20) == Outcome(None, signal.SIGTERM)
        assert gone(left)


def test_what_stays_in_its_group_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftplan.launcher.process.REST_SECONDS", 0.2)
    log = tmp_path / "log.txt"
    with Child(leader_of(STUBBORN[2], new_session=False), {}, log) as child:
        left = left_behind(log)
        child.terminate()
        assert child.wait(20) == Outcome(None, signal.SIGTERM)
    assert wait_until_gone(left)


def test_killing_reaches_other_sessions(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with Child(SLEEP, {}, tmp_path / "other.txt") as other, Child(leader_of(SLOW, new_session=True), {}, log) as child:
        left = left_behind(log)
        child.kill()
        assert child.wait(20) == Outcome(None, signal.SIGKILL)
        assert wait_until_gone(left)
        assert other.wait(0) is None


def test_requests_to_stop_grow_stronger(tmp_path: Path) -> None:
    stop_file = tmp_path / "stop"
    with StopRequests() as requests, Child(STUBBORN, {}, tmp_path / "log.txt") as child:
        wait_until_ready(tmp_path / "log.txt")
        requests.obey(child, stop_file, training=True)
        assert not stop_file.exists()
        signal.raise_signal(signal.SIGINT)
        requests.obey(child, stop_file, training=True)
        assert stop_file.exists()
        signal.raise_signal(signal.SIGTERM)
        requests.obey(child, stop_file, training=True)
        assert child.wait(0.1) is None
        signal.raise_signal(signal.SIGTERM)
        requests.obey(child, stop_file, training=True)
        assert child.wait(20) == Outcome(None, signal.SIGKILL)
        assert requests.count == 3


def test_before_the_training_the_first_request_ends_it(tmp_path: Path) -> None:
    with StopRequests() as requests, Child(SLEEP, {}, tmp_path / "log.txt") as child:
        signal.raise_signal(signal.SIGTERM)
        requests.obey(child, tmp_path / "stop", training=False)
        assert child.wait(20) == Outcome(None, signal.SIGTERM)
    assert not (tmp_path / "stop").exists()


def test_signals_mean_again_what_they_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as requests:
            signal.raise_signal(signal.SIGHUP)
            assert requests.count == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
