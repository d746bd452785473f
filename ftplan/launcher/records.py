"""The folder of a run, and writing to it so that a kill at any moment leaves either the old file or the new one.

::

    runs/<run_id>/
        plan.json       the plan it was launched from, if there was one
        job.json        what every rank reads
        launch.sh       the same launch, for people
        state.json      running, finished, failed or interrupted
        metrics.jsonl   events, one a line (`ftplan.launcher.events`)
        log.txt         stdout and stderr of all processes
        checkpoints/    checkpoint-N, complete or absent (`ftplan.launcher.checkpoints`)
        checkpoints-before-N/  those that a run which recovered could not go on from
        tensorboard/    scalars, for TensorBoard
        profile/        traces and memory snapshots of a few steps, where asked for
        final/          the trained adapter or model with its tokenizer
        record.json     predicted beside measured
        nodes/N/        of a run on several machines: job, state, metrics, log and record as node N (from 1) keeps them
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from ftplan.files import write_atomic
from ftplan.launcher import checkpoints
from ftplan.results import RunRecord, from_json, to_jsonable

Status = Literal["running", "finished", "failed", "interrupted"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths inside one run's folder, for one of the machines that train in it.

    What a machine writes for itself has a place of its own (`home`), because the folder may be on a disk that all of
    them share: two that append to one file of NFS overwrite each other.
    """

    root: Path
    node: int = 0

    @property
    def home(self) -> Path:
        """What this machine alone writes: for the first one the run's folder itself."""
        return self.root if self.node == 0 else self.root / "nodes" / str(self.node)

    @property
    def plan(self) -> Path:
        """The plan the run was launched from."""
        return self.root / "plan.json"

    @property
    def job(self) -> Path:
        """The `TrainJob` every rank reads."""
        return self.home / "job.json"

    @property
    def state(self) -> Path:
        """The `RunState`."""
        return self.home / "state.json"

    @property
    def metrics(self) -> Path:
        """The events of every attempt."""
        return self.home / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Output of all processes of every attempt."""
        return self.home / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def final(self) -> Path:
        """The trained adapter or model."""
        return self.root / "final"

    @property
    def record(self) -> Path:
        """The `RunRecord`."""
        return self.home / "record.json"

    @property
    def architecture(self) -> Path:
        """The config.json of a rehearsal's random weights."""
        return self.root / "architecture"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces and memory snapshots of the steps that were profiled."""
        return self.root / "profile"

    @property
    def stop_request(self) -> Path:
        """While this file exists, the run saves a checkpoint after the current step and stops."""
        return self.home / "stop"

    @property
    def lock(self) -> Path:
        """Locked by the process that runs it."""
        return self.home / "lock"


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run is doing. ``pid`` on ``host`` is the process that launched it."""

    status: Status
    pid: int
    host: str
    attempt: int = 1


def new_run_id(now: datetime | None = None, suffix: str | None = None) -> str:
    """A name for a run that sorts by time: ``20250131-120000-3f2a`` (UTC)."""
    moment = now or datetime.now(UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{suffix or secrets.token_hex(2)}"


def write_json(path: Path, document: object) -> None:
    """`write_atomic` of ``document`` as indented JSON."""
    write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_state(run: RunDir, status: Status, attempt: int) -> None:
    """Record what the run is doing, on behalf of this process."""
    write_json(run.state, to_jsonable(RunState(status, os.getpid(), socket.gethostname(), attempt)))


def read_state(run: RunDir) -> RunState | None:
    """The state last written; None where there is none or it is not one of ours."""
    return _read(RunState, run.state)


def is_abandoned(run: RunDir, state: RunState) -> bool:
    """Whether ``state``, of this host, says running, and nobody runs it any more: its lock is free.

    Where the lock is missing or cannot be tried, the process that launched it is gone.
    """
    if state.status != "running" or state.host != socket.gethostname():
        return False
    try:
        with run.lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not is_alive(state.pid)
    return True


def write_record(run: RunDir, record: RunRecord) -> None:
    """Keep the record of the newest attempt."""
    write_json(run.record, to_jsonable(record))


def read_record(run: RunDir) -> RunRecord | None:
    """The record last written; None where there is none or it is not one of ours."""
    return _read(RunRecord, run.record)


def newest_resumable(runs: Path) -> RunDir | None:
    """The newest unfinished run under ``runs`` that has a complete checkpoint."""
    found = sorted(runs.glob("*/state.json"), key=lambda state: state.stat().st_mtime_ns, reverse=True)
    return next((run for state in found if resumable(run := RunDir(state.parent))), None)


def resumable(run: RunDir) -> bool:
    """Whether the run is unfinished, not running now, and has a complete checkpoint to go on from."""
    state = read_state(run)
    stopped = state is not None and (state.status in ("failed", "interrupted") or is_abandoned(run, state))
    return stopped and checkpoints.latest_complete(run.checkpoints) is not None


def _read(kind: type[_T], path: Path) -> _T | None:
    try:
        return from_json(kind, path.read_bytes())
    except (OSError, ValueError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has the id ``pid``, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
