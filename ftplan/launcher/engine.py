"""Launches a `TrainJob`, follows it, and keeps the record. Events are handed on as data; nothing is printed here."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ftplan.errors import FtplanError, InputError, RunFailedError
from ftplan.files import write_atomic
from ftplan.launcher import artifacts, checkpoints, diagnosis, monitor, records, resharding
from ftplan.launcher.events import Event, Finished, Noted, Started
from ftplan.launcher.job import TrainJob
from ftplan.launcher.process import Child, Outcome
from ftplan.launcher.records import RunDir, Status
from ftplan.launcher.stopping import StopRequests
from ftplan.launcher.summary import summarise
from ftplan.results import RunRecord

POLL_SECONDS: Final = 0.2

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `launch` would do: the command, what it adds to the environment, and the files by path."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]


def _ignore(_event: Event) -> None:
    """Do nothing with an event."""


def prepare(job: TrainJob) -> Prepared:
    """The command and files of ``job``, for a dry run; touches nothing."""
    job = job.absolute()
    run = RunDir(Path(job.run_dir))
    files = {str(run.root / name): text for name, text in artifacts.files(job).items()}
    return Prepared(tuple(artifacts.argv(job, str(run.job))), artifacts.environment(job), files)


def load_job(run: RunDir) -> TrainJob:
    """The job a run was launched with; raises InputError if its file is missing or unreadable."""
    try:
        return TrainJob.model_validate_json(run.job.read_bytes())
    except OSError as error:
        raise InputError(f"no run in {run.root}: {error.strerror}", field="resume") from error
    except ValueError as error:
        raise InputError(
            f"{run.job} is not a job of this ftplan", hint="another version wrote it, or it is damaged", field="resume"
        ) from error


def resume_job(run: RunDir) -> TrainJob:
    """The job of ``run``, set to go on from its newest complete checkpoint."""
    return load_job(run).model_copy(update={"resume": True, "run_dir": str(run.root)})


def launch(job: TrainJob, *, on_event: OnEvent = _ignore) -> RunRecord:
    """Train ``job`` and return its record, with status ``finished`` or ``interrupted``.

    The first SIGINT or SIGTERM to this process asks the workers to save a checkpoint and stop, the second ends them.
    Raises InputError if the run's folder, the data or the tokenizer cannot be used, RunFailedError if the run failed
    (the record says so, too).
    """
    artifacts.check_launchable(job.config, job.device)
    job = job.absolute()
    run = RunDir(Path(job.run_dir))
    with _locked(run):
        attempt, job = _open(run, job, on_event)
        started = time.monotonic()
        log_start = monitor.size_of(run.log)
        events, outcome, stopped = _follow(run, job, on_event)
        wall_seconds = time.monotonic() - started
        status = _status(events, outcome, stopped=stopped)
        record = summarise(job, status, events, monitor.read_all(run.metrics), wall_seconds)
        records.write_record(run, record)
        records.write_state(run, status, attempt)
    if status == "failed":
        raise _failure(run, events, outcome, log_start)
    return record


def _open(run: RunDir, job: TrainJob, on_event: OnEvent) -> tuple[int, TrainJob]:
    """Make the run's folder ready; returns the number of this attempt and the job as its ranks read it."""
    state = records.read_state(run)
    if job.resume:
        _check_resumable(run, job)
        job = _readable(run, job)
    elif state is not None or checkpoints.latest_complete(run.checkpoints) is not None:
        raise InputError(f"{run.root} already holds a run", hint="resume it, or choose another folder", field="run_dir")
    checkpoints.discard_unfinished(run.checkpoints)
    for aside in checkpoints.set_aside_damaged(run.checkpoints):
        on_event(Noted(f"a checkpoint does not match its manifest and is not used: see {aside}"))
    run.stop_request.unlink(missing_ok=True)
    for name, text in artifacts.files(job).items():
        write_atomic(run.root / name, text)
    attempt = state.attempt + 1 if state else 1
    records.write_state(run, "running", attempt)
    return attempt, job


def _check_resumable(run: RunDir, job: TrainJob) -> None:
    state = records.read_state(run)
    if state is not None and state.status == "finished":
        raise InputError(f"the run in {run.root} is finished: there is nothing to resume", field="resume")
    last = checkpoints.latest_complete(run.checkpoints)
    if last is None:
        raise InputError(
            f"no complete checkpoint in {run.checkpoints}", hint="start the run again from its plan", field="resume"
        )
    if last.global_batch != job.global_batch:
        raise InputError(
            f"the checkpoint was made with a global batch of {last.global_batch}, not of {job.global_batch}",
            hint="a step would no longer mean the same: keep the global batch",
            field="global_batch",
        )
    former = load_job(run).config.sharding if run.job.exists() else job.config.sharding
    if resharding.form(former) != resharding.form(job.config.sharding):
        raise InputError(
            f"a checkpoint of {former} cannot be read by {job.config.sharding}",
            hint=f"keep the sharding {former}",
            field="sharding",
        )


def _readable(run: RunDir, job: TrainJob) -> TrainJob:
    """``job`` with the newest checkpoint in a form that its number of ranks can read."""
    last = checkpoints.latest_complete(run.checkpoints)
    assert last is not None, "the job can be resumed"
    converted = str(resharding.universal(run, last, sys.executable)) if resharding.is_needed(last, job) else None
    return job.model_copy(update={"universal_checkpoint": converted})


def _follow(run: RunDir, job: TrainJob, on_event: OnEvent) -> tuple[list[Event], Outcome, bool]:
    """Run the processes to their end, handing on each event; also says whether the user asked to stop."""
    events: list[Event] = []
    following = monitor.Monitor(run.metrics, offset=monitor.size_of(run.metrics))

    def take() -> None:
        for event in following.read():
            events.append(event)
            on_event(event)

    command = artifacts.argv(job, str(run.job))
    with StopRequests() as requests, Child(command, artifacts.environment(job), run.log) as child:
        while (outcome := child.wait(POLL_SECONDS)) is None:
            take()
            training = any(isinstance(event, Started) for event in events)
            requests.obey(child, run.stop_request, training=training)
        take()
        return events, outcome, requests.count > 0


def _status(events: list[Event], outcome: Outcome, *, stopped: bool) -> Status:
    finished = next((event for event in events if isinstance(event, Finished)), None)
    if finished is not None and (outcome.ok or finished.status == "interrupted"):
        return finished.status
    return "interrupted" if stopped else "failed"


def _failure(run: RunDir, events: list[Event], outcome: Outcome, log_start: int) -> FtplanError:
    found = diagnosis.diagnose(events, outcome, diagnosis.tail(run.log, log_start))
    if found.bad_input:
        return InputError(found.message, hint=found.hint)
    last = checkpoints.latest_complete(run.checkpoints)
    way_on = f"step {last.step} is saved: resume the run to go on from there" if last else ""
    hint = "; ".join(part for part in (found.hint, way_on, f"log: {run.log}") if part)
    return RunFailedError(found.message, hint=hint)


@contextmanager
def _locked(run: RunDir) -> Iterator[None]:
    run.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, run)
        yield
    finally:
        # Closing releases the lock, and so does the death of this process.
        os.close(descriptor)


def _lock(descriptor: int, run: RunDir) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is training in {run.root}", field="run_dir") from error
