"""Why a run failed, in one message: from what its ranks reported, or else from how they died."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ftplan.errors import FailureKind
from ftplan.launcher.events import Event, Failed
from ftplan.launcher.process import Outcome

TAIL_BYTES: Final = 16_384

_EXIT: Final = re.compile(r"^\s*rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)", re.MULTILINE)
_HINTS: Final[Mapping[int, str]] = {
    signal.SIGKILL: "SIGKILL is what the system sends when the host runs out of memory",
    signal.SIGBUS: "SIGBUS often means that shared memory (/dev/shm) is full",
    signal.SIGSEGV: "a native library crashed: the log may name it",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One sentence on what went wrong, and what to do about it; ``bad_input``: the user's input is at fault."""

    message: str
    hint: str = ""
    bad_input: bool = False
    kind: FailureKind = "error"


def diagnose(
    events: Iterable[Event], outcome: Outcome, log_tail: str, *, ended: str = "the training processes"
) -> Diagnosis:
    """The root cause among all that was reported, or else how ``ended`` came to their end."""
    cause = root_cause(events)
    killed = _killed(log_tail)
    if killed is not None and (cause is None or _unspecific(cause)):
        return killed
    if cause is not None:
        return _reported(cause)
    last = _last_line(log_tail)
    hints = (_HINTS.get(outcome.signal or 0, ""), f"its last words: {last}" if last else "")
    message = f"{ended} ended {_how(outcome)} without a report"
    kind: FailureKind = "killed" if outcome.signal is not None else "error"
    return Diagnosis(message, "; ".join(filter(None, hints)), kind=kind)


def root_cause(events: Iterable[Event]) -> Failed | None:
    """The failure among ``events`` that tells most of the cause; None if there is none.

    When one rank fails, the others fail after it with errors about the lost connection; a specific kind tells more
    than a bare error, and the earliest more than a later one.
    """
    return min((event for event in events if isinstance(event, Failed)), key=_unspecific, default=None)


def _unspecific(failure: Failed) -> int:
    """How little a report tells of the root cause: a lost connection is what others died of, an error may be too."""
    return {"error": 1, "lost_rank": 2}.get(failure.kind, 0)


def _reported(failure: Failed) -> Diagnosis:
    if failure.kind == "input":
        return Diagnosis(failure.message, failure.hint, bad_input=True)
    return Diagnosis(f"rank {failure.rank} failed: {failure.message}", failure.hint, kind=failure.kind)


def tail(path: Path, start: int = 0) -> str:
    """The end of a log file, of what follows byte ``start``; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_line(path: Path) -> str:
    """The last line of a log file that holds a word; empty if none does."""
    return _last_line(tail(path))


def _killed(log_tail: str) -> Diagnosis | None:
    """The rank that torchrun's summary says was ended by a signal, if there is one.

    SIGTERM does not count: torchrun itself sends it to the ranks that are left.
    """
    for rank, exit_code in _EXIT.findall(log_tail):
        number = -int(exit_code)
        if number > 0 and number != signal.SIGTERM:
            return Diagnosis(f"rank {rank} was killed by {_name(number)}", _HINTS.get(number, ""), kind="killed")
    return None


def _how(outcome: Outcome) -> str:
    return f"by {_name(outcome.signal)}" if outcome.signal is not None else f"with exit code {outcome.exit_code}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
