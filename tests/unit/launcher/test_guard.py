"""The guard of a worker, in a process of its own that real signals reach."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

GUARDED = """
import os, signal, sys, threading, time
from ftplan.launcher.train import guard
guard.POLL_SECONDS = 0.01
watched = guard.Guard()
watched.start()
if sys.argv[1] != "loading":
    watched.training_begins((os.getpid(),))
# What a library's signal does to the guard's thread, whose wait it interrupts.
watching = next(thread for thread in threading.enumerate() if thread.name == "ftplan-guard")
signal.signal(signal.SIGUSR1, lambda number, frame: None)
deadline = time.monotonic() + 0.5
while time.monotonic() < deadline:
    signal.pthread_kill(watching.ident, signal.SIGUSR1)
print(watched.stop_requested.is_set(), flush=True)
if sys.argv[1] != "interrupted":
    os.kill(os.getpid(), signal.SIGTERM)
    print(watched.stop_requested.wait(5), flush=True)
# Python's own end would take the handler away from signals that are still on their way.
os._exit(0)
"""


def guarded(what: str) -> tuple[list[str], int]:
    """The words and the exit code of a process under guard."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, what], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert not done.stderr
    return done.stdout.split(), done.returncode


@pytest.mark.parametrize(
    ("what", "words", "exit_code"),
    [
        ("interrupted", ["False"], 0),
        ("training", ["False", "True"], 0),
        ("loading", ["False"], 128 + signal.SIGTERM),
    ],
)
def test_only_sigterm_asks_to_stop(what: str, words: list[str], exit_code: int) -> None:
    assert guarded(what) == (words, exit_code)
