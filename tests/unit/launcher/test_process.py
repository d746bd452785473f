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


def wait_until_ready(log: Path) -> None:
    deadline = time.monotonic() + 20
    while b"ready" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


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
