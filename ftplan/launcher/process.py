"""The only module that starts processes: torchrun as a child in a session of its own, with its output in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LAUNCHER_PID: Final = "FTPLAN_LAUNCHER_PID"
"""Tells the workers which process launched them: they end when it is gone (`ftplan.launcher.train.guard`)."""

GRACE_SECONDS: Final = 10.0


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

    Args:
        argv: the command.
        env: what is added to this process's environment.
        log: the file stdout and stderr are appended to.
        answer: the file stdout goes to instead, where the command answers there.

    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, answer: Path | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output, (answer or log).open("ab") as stdout:
            # A session of its own keeps the terminal's Ctrl-C from the workers: this process decides what it means.
            self._process = subprocess.Popen(
                list(argv),
                env={**os.environ, **env, LAUNCHER_PID: str(os.getpid())},
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
        """How it ended, or None if it has not after ``timeout_seconds``."""
        try:
            return _outcome(self._process.wait(timeout_seconds))
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Send SIGTERM to the process group; torchrun passes it on to its workers."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group; workers notice that torchrun is gone and end."""
        self._signal_group(signal.SIGKILL)

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

    def _signal_group(self, number: signal.Signals) -> None:
        # Once it is reaped, its id may belong to another process.
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _outcome(returncode: int) -> Outcome:
    return Outcome(None, -returncode) if returncode < 0 else Outcome(returncode, None)
