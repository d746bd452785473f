"""The only module that starts processes: torchrun as a child in a session of its own, with its output in a log file."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LAUNCHER_PID: Final = "FTPLAN_LAUNCHER_PID"
"""Tells the workers which process launched them: they end when it is gone (`ftplan.launcher.train.guard`)."""

MARK: Final = "FTPLAN_PROCESS_MARK"
"""Marks what a `Child` and its descendants are by a value of its own, whatever their session."""

GRACE_SECONDS: Final = 10.0
REST_SECONDS: Final = 40.0
"""For what the command leaves in its process group: torchrun gives its ranks 30 s to end."""

_POLL_SECONDS: Final = 0.05
_PROCESSES: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the child ended: with an exit code, or by a signal."""

    exit_code: int | None
    signal: int | None

    @property
    def ok(self) -> bool:
        """Exit code 0."""
        return self.exit_code == 0


class Child:
    """A running command, without a shell. Leaving the ``with`` block ends it if it has not ended yet.

    It has ended when no process of its group is left: `llamafactory-cli` dies of a signal at once, while the torchrun
    that it started still ends its ranks.

    Args:
        argv: the command.
        env: what is added to this process's environment.
        log: the file stdout and stderr are appended to.
        answer: the file stdout goes to instead, where the command answers there.

    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, answer: Path | None = None) -> None:
        self._mark = secrets.token_hex(8)
        self._ended: float | None = None
        self._is_over = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output, (answer or log).open("ab") as stdout:
            # A session of its own keeps the terminal's Ctrl-C from the workers: this process decides what it means.
            self._process = subprocess.Popen(
                list(argv),
                env={**os.environ, **env, LAUNCHER_PID: str(os.getpid()), MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the command, which leads its own process group."""
        return self._process.pid

    def wait(self, timeout_seconds: float) -> Outcome | None:
        """How the command ended, once its group is empty; None if it is not after ``timeout_seconds``.

        What is left in the group `REST_SECONDS` after the command is killed.
        """
        deadline = time.monotonic() + timeout_seconds
        try:
            outcome = _outcome(self._process.wait(timeout_seconds))
        except subprocess.TimeoutExpired:
            return None
        self._ended = self._ended or time.monotonic()
        while self._runs():
            now = time.monotonic()
            if now - self._ended > REST_SECONDS:
                self.kill()
                break
            if now >= deadline:
                return None
            time.sleep(_POLL_SECONDS)
        return outcome

    def terminate(self) -> None:
        """Send SIGTERM to the process group; torchrun passes it on to its workers."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group, and to what it started in other sessions, as torchrun does its workers.

        Those are found where the system lists processes in /proc.
        """
        self._signal_group(signal.SIGKILL)
        for pid in _marked(self._mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.wait(0) is not None:
            return
        self.terminate()
        if self.wait(GRACE_SECONDS) is None:
            self.kill()
            self._process.wait()
            self.wait(GRACE_SECONDS)

    def _runs(self) -> bool:
        """Whether the command or what it left in its group runs; once it is empty, its id may belong to others."""
        if self._process.poll() is not None and not self._is_over:
            self._is_over = not _is_alive(self.pid)
        return not self._is_over

    def _signal_group(self, number: signal.Signals) -> None:
        if self._runs():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def start_detached(argv: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """Start a command that outlives this process, in a session of its own; what it says goes to the file ``output``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        return subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)


def _outcome(returncode: int) -> Outcome:
    return Outcome(None, -returncode) if returncode < 0 else Outcome(returncode, None)


def _is_alive(group: int) -> bool:
    """Whether a process group has a member that still runs; one that nobody has reaped does not."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    states = [state for state, its_group in _states() if its_group == group]
    return not states or any(state not in "ZX" for state in states)


def _states() -> Iterator[tuple[str, int]]:
    """Yield the state and the group of every process that the system lists."""
    for file in _PROCESSES.glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name of its program stands before, in brackets, and may hold any character.
            state, _parent, group = file.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            yield state, int(group)


def _marked(mark: str) -> Iterator[int]:
    """Yield the ids of the processes that were started with ``mark`` in their environment."""
    entry = f"{MARK}={mark}".encode()
    for file in _PROCESSES.glob("[0-9]*/environ"):
        with suppress(OSError):
            if entry in file.read_bytes().split(b"\0"):
                yield int(file.parent.name)
