"""Launches a `TrainJob`, follows it, and keeps the record. Events are handed on as data; nothing is printed here."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, cast

from ftplan.errors import FtplanError, InputError, RunFailedError
from ftplan.files import write_atomic
from ftplan.launcher import artifacts, checkpoints, diagnosis, monitor, records, resharding
from ftplan.launcher.environment import make_private, settled
from ftplan.launcher.events import Event, Finished, Noted, Started
from ftplan.launcher.job import TrainJob
from ftplan.launcher.process import Child, Outcome
from ftplan.launcher.records import RunDir, Status
from ftplan.launcher.stopping import StopRequests
from ftplan.launcher.summary import summarise
from ftplan.results import RunRecord

POLL_SECONDS: Final = 0.2
NO_SPACE_BYTES: Final = 2**20
"""With less a disk counts as full: a report and a record take some KB."""

Replaces = Literal["nothing", "unsaved", "everything"]
"""What an attempt may take the place of in its folder: no former one, one that saved nothing, or any, whose checkpoints
are then set aside."""

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `launch` would do: the command, what it adds to the environment and why, and the files by path.

    ``notes`` say what of the user's environment is replaced; ``timeout_seconds`` is how long a rank waits for others.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    timeout_seconds: int | None = None


def _ignore(_event: Event) -> None:
    """Do nothing with an event."""


def check(job: TrainJob) -> None:
    """Raise InputError for a job that cannot be launched as it is configured, or not on these machines."""
    artifacts.check_rendezvous(job)
    artifacts.check_launchable(job.config, job.device, nodes=job.nodes)


def prepare(job: TrainJob) -> Prepared:
    """The command and files of ``job``, for a dry run; touches nothing."""
    check(job)
    job = job.absolute()
    run = job.folder
    files = {str(run.home / name): text for name, text in artifacts.files(job).items()}
    found = settled(artifacts.variables(job, os.environ), os.environ)
    command = tuple(artifacts.argv(job, str(run.job)))
    return Prepared(command, found.values, files, found.reasons, found.notes, job.timeout_seconds)


def load_job(run: RunDir) -> TrainJob:
    """The job a run was launched with; raises InputError if its file is missing or unreadable.

    A machine that has none of its own takes the first one's, where the disk is shared.
    """
    file = run.job if run.job.exists() else RunDir(run.root).job
    try:
        return TrainJob.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"no run in {run.root}: {error.strerror}", field="resume") from error
    except ValueError as error:
        raise InputError(
            f"{file} is not a job of this ftplan", hint="another version wrote it, or it is damaged", field="resume"
        ) from error


def resume_job(run: RunDir) -> TrainJob:
    """The job of ``run``, set to go on from its newest complete checkpoint."""
    return load_job(run).model_copy(update={"resume": True, "run_dir": str(run.root)})


def launch(
    job: TrainJob,
    *,
    on_event: OnEvent = _ignore,
    replaces: Replaces = "nothing",
    kept: Mapping[str, str] = MappingProxyType({}),
) -> RunRecord:
    """Train ``job`` and return its record, with status ``finished`` or ``interrupted``.

    ``kept`` are files, by name, that are put into the run's folder before it begins.

    The first SIGINT or SIGTERM to this process asks the workers to save a checkpoint and stop, the second ends them.
    Raises InputError if the run's folder, the data or the tokenizer cannot be used, RunFailedError if the run failed
    (the record says so, too).
    """
    check(job)
    job = job.absolute()
    run = job.folder
    make_private(artifacts.cache_variables(job, os.environ), os.environ)
    with locked(run):
        admit(run, job, on_event, replaces=replaces)
        job = _readable(run, job)
        attempt = open_attempt(run, artifacts.files(job), kept)
        started = time.monotonic()
        log_start = monitor.size_of(run.log)
        events, outcome, stopped = _follow(run, job, on_event)
        wall_seconds = time.monotonic() - started
        status = _status(events, stopped=stopped)
        record = summarise(job, status, events, monitor.read_all(run.metrics), wall_seconds)
        error = failure(job, events, outcome, log_start) if status == "failed" else None
        end_attempt(run, record, attempt, error)
    return record


def end_attempt(run: RunDir, record: RunRecord, attempt: int, error: FtplanError | None) -> None:
    """Keep the record and the state that an attempt ended in; raises ``error``, or what hinders writing them."""
    try:
        records.write_record(run, record)
        records.write_state(run, cast("Status", record.status), attempt)
    except OSError as unwritable:
        full = unwritable.errno in (errno.ENOSPC, errno.EDQUOT)
        raise error or RunFailedError(
            f"cannot write to {run.root}: {unwritable.strerror}", kind="disk_full" if full else "error"
        ) from unwritable
    if error is not None:
        raise error


def admit(run: RunDir, job: TrainJob, on_event: OnEvent, *, replaces: Replaces) -> None:
    """Make sure that the folder is one ``job`` can begin or go on in, and clear it of what is in the way there.

    Of several machines the first decides whether a run begins or goes on; the others follow it. Raises InputError for a
    folder that holds a run already, or none to go on with.
    """
    if run.node:
        return
    state = records.read_state(run)
    if job.resume:
        _check_resumable(run, job, state)
    elif state is not None and state.status == "finished":
        raise InputError(f"{run.root} already holds a run", hint="choose another folder", field="run_dir")
    elif checkpoints.latest_complete(run.checkpoints) is not None:
        if replaces != "everything":
            hint = "resume it, or choose another folder"
            raise InputError(f"{run.root} already holds a run", hint=hint, field="run_dir")
        checkpoints.set_aside(run.checkpoints)
    elif state is not None and replaces == "nothing":
        hint = "--resume-or-start begins it anew there, or choose another folder"
        raise InputError(f"{run.root} holds a run that saved nothing", hint=hint, field="run_dir")
    checkpoints.discard_unfinished(run.checkpoints)
    for aside in checkpoints.set_aside_damaged(run.checkpoints):
        on_event(Noted(f"a checkpoint does not match its manifest and is not used: see {aside}"))


def open_attempt(run: RunDir, files: Mapping[str, str], kept: Mapping[str, str]) -> int:
    """Write this machine's ``files`` and the run's, say that it is running, and return the number of this attempt."""
    state = records.read_state(run)
    run.stop_request.unlink(missing_ok=True)
    for folder, texts in ((run.home, files), (run.root, kept)):
        for name, text in texts.items():
            write_atomic(folder / name, text)
    attempt = state.attempt + 1 if state else 1
    records.write_state(run, "running", attempt)
    return attempt


def _check_resumable(run: RunDir, job: TrainJob, state: records.RunState | None) -> None:
    if state is not None and state.status == "finished":
        raise InputError(f"the run in {run.root} is finished: there is nothing to resume", field="resume")
    last = checkpoints.latest_complete(run.checkpoints)
    if last is None:
        raise InputError(
            f"no complete checkpoint in {run.checkpoints}",
            hint="start it again from its plan, with --resume-or-start in the same folder",
            field="resume",
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
    """``job`` with the newest checkpoint in a form that its number of ranks can read; raises InputError if it cannot.

    One machine converts for itself.
    """
    last = checkpoints.latest_complete(run.checkpoints) if job.resume else None
    if last is None or not resharding.is_needed(last, job):
        return job.model_copy(update={"universal_checkpoint": None})
    if job.rendezvous is not None:
        raise InputError(
            f"DeepSpeed's checkpoint of {last.world_size} processes is converted on one machine only",
            hint=f"resume on machines with {last.world_size} devices in all",
            field="nodes",
        )
    return job.model_copy(update={"universal_checkpoint": str(resharding.universal(run, last, sys.executable))})


def _follow(run: RunDir, job: TrainJob, on_event: OnEvent) -> tuple[list[Event], Outcome, bool]:
    """Run the processes to their end, handing on each event; also says whether the user asked to stop."""
    events: list[Event] = []
    following = monitor.Monitor(run.metrics, offset=monitor.size_of(run.metrics))

    def take() -> None:
        for event in following.read():
            events.append(event)
            on_event(event)

    command = artifacts.argv(job, str(run.job))
    environment = settled(artifacts.variables(job, os.environ), os.environ)
    for note in environment.notes:
        on_event(Noted(note))
    with StopRequests() as requests, Child(command, environment.values, run.log) as child:
        while (outcome := child.wait(POLL_SECONDS)) is None:
            take()
            training = any(isinstance(event, Started) for event in events)
            requests.obey(child, run.stop_request, training=training)
        take()
        return events, outcome, requests.count > 0


def _status(events: list[Event], *, stopped: bool) -> Status:
    finished = next((event for event in events if isinstance(event, Finished)), None)
    if finished is not None:
        # Everything is on disk by then: what fails while a process exits (a thread of DeepSpeed did) spoils nothing.
        return finished.status
    return "interrupted" if stopped else "failed"


def failure(job: TrainJob, events: list[Event], outcome: Outcome, log_start: int) -> FtplanError:
    """Why the attempt failed, as an error for users: bad input, or a failed run with the way on."""
    run = job.folder
    found = diagnosis.diagnose(events, outcome, diagnosis.tail(run.log, log_start))
    if found.bad_input:
        return InputError(found.message, hint=found.hint)
    if found.kind == "error" and shutil.disk_usage(run.root).free < NO_SPACE_BYTES:
        # On a full disk nobody could write what went wrong.
        found = diagnosis.Diagnosis("the disk is full", f"free space on that of {run.root}", kind="disk_full")
    if found.kind == "disk_full":
        # What was cut short takes the room that the record needs.
        checkpoints.discard_unfinished(run.checkpoints)
    last = checkpoints.latest_complete(run.checkpoints)
    way_on = f"step {last.step} is saved: resume the run to go on from there" if last else ""
    others = "another node may have failed first: see its log, too" if job.nodes > 1 else ""
    hint = "; ".join(part for part in (found.hint, way_on, others, f"log: {run.log}") if part)
    return RunFailedError(found.message, hint=hint, kind=found.kind)


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run's folder against other launches; raises InputError if one has it, or it cannot be written."""
    try:
        run.home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(run, error) from error
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
    except OSError as error:  # a file system without locks
        raise _unwritable(run, error) from error


def _unwritable(run: RunDir, error: OSError) -> InputError:
    hint = "name a folder that can be made, written and locked"
    return InputError(f"cannot write to {run.root}: {error.strerror}", hint=hint, field="run_dir")
