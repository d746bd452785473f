"""Launches a `TrainJob` by `llamafactory-cli`, follows its log, and keeps the record as `ftplan.launcher.engine` does.

LLaMA-Factory knows no request to save: a signal ends it, and a run goes on from its last checkpoint. The trainer writes
``trainer_state.json`` last into a checkpoint, the ranks' random state a moment before, so that a checkpoint is declared
complete when training has gone on after it, or has ended well. Older ones are deleted here alone: the trainer, given a
limit of its own, would delete what is being sealed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ftplan.errors import InputError
from ftplan.files import append_line, end_line
from ftplan.launcher import checkpoints, diagnosis, monitor, resharding
from ftplan.launcher.artifacts import cache_variables
from ftplan.launcher.engine import Prepared, Replaces, admit, end_attempt, failure, locked, open_attempt
from ftplan.launcher.environment import make_private
from ftplan.launcher.events import Event, Finished, Noted, Saved, Started, Stepped, to_line
from ftplan.launcher.job import TrainJob
from ftplan.launcher.llamafactory import files
from ftplan.launcher.llamafactory import log as factory_log
from ftplan.launcher.llamafactory.environment import FactoryEnvironment
from ftplan.launcher.process import Child, Outcome
from ftplan.launcher.records import RunDir, Status
from ftplan.launcher.stopping import StopRequests
from ftplan.launcher.summary import summarise
from ftplan.results import RunRecord

POLL_SECONDS: Final = 0.2
LAST_WRITTEN: Final = "trainer_state.json"
"""Of a checkpoint's files (transformers, trainer.py: ``_save_checkpoint``)."""

OnEvent = Callable[[Event], None]


def prepare(job: TrainJob) -> Prepared:
    """The command and files of ``job`` but its data, for a dry run; touches nothing."""
    files.check(job)
    job = job.absolute()
    start = files.launch(job)
    named = {str(job.folder.root / name): text for name, text in start.files.items()}
    return Prepared(start.argv, start.env, named, notes=start.notes)


def launch(
    job: TrainJob,
    *,
    on_event: OnEvent,
    replaces: Replaces = "nothing",
    kept: Mapping[str, str] = MappingProxyType({}),
) -> RunRecord:
    """Train ``job`` and return its record, as `ftplan.launcher.engine.launch` does, with the same errors."""
    files.check(job)
    job = job.absolute()
    run = job.folder
    make_private(cache_variables(job, os.environ), os.environ)
    data = files.rows(job)
    with locked(run):
        admit(run, job, on_event, replaces=replaces)
        last = checkpoints.latest_complete(run.checkpoints) if job.resume else None
        if last is not None and resharding.is_needed(last, job):
            raise InputError(
                f"LLaMA-Factory goes on from DeepSpeed's checkpoint of {last.world_size} processes with as many",
                hint=f"resume on {last.world_size} devices",
                field="gpus",
            )
        start = files.launch(job, resume_from=last.path if last else None)
        attempt = open_attempt(run, {**start.files, **data.files}, kept)
        following = _Following(job, data.count, last.step if last else None, on_event)
        for note in (*start.notes, *data.notes):
            following.tell(Noted(note))
        began, log_start = time.monotonic(), monitor.size_of(run.log)
        outcome, stopped = _run(start, run, following)
        status: Status = "finished" if outcome.ok else "interrupted" if stopped else "failed"
        following.end(run.log, log_start, status)
        history = monitor.read_all(run.metrics)
        record = summarise(job, status, following.events, history, time.monotonic() - began)
        error = failure(job, following.events, outcome, log_start) if status == "failed" else None
        end_attempt(run, record, attempt, error)
    return record


def _run(start: files.Launch, run: RunDir, following: _Following) -> tuple[Outcome, bool]:
    with StopRequests() as requests, Child(start.argv, start.env, run.log) as child:
        while (outcome := child.wait(POLL_SECONDS)) is None:
            following.look()
            # Nothing is saved on request: the first signal ends it.
            requests.obey(child, run.stop_request, training=False)
        following.look()
        return outcome, requests.count > 0


class _Following:
    """What an attempt reports: its log's lines, the checkpoints that appear, and its end; each is kept and told."""

    def __init__(self, job: TrainJob, samples: int, resumed_from: int | None, on_event: OnEvent) -> None:
        run = job.folder
        log = run.checkpoints / factory_log.LOG_FILE
        self.events: list[Event] = []
        self._job = job
        self._samples = samples
        self._resumed_from = resumed_from
        self._on_event = on_event
        self._lines = monitor.LineReader(log, offset=monitor.size_of(log))
        self._reader = factory_log.LogReader(resumed_from or 0)
        self._log_start = monitor.size_of(run.log)
        self._saved = {each.path for each in checkpoints.complete(run.checkpoints)}
        end_line(run.metrics)

    def tell(self, event: Event) -> None:
        """Keep an event and hand it on."""
        self.events.append(event)
        append_line(self._job.folder.metrics, to_line(event).decode().rstrip("\n"))
        self._on_event(event)

    def look(self) -> None:
        """Take in what is new."""
        for line in self._lines.read():
            for event in self._reader.events(line):
                if isinstance(event, Stepped):
                    self._begin(event)
                self.tell(event)
        self._seal(before=self._reader.step)

    def end(self, log: Path, log_start: int, status: Status) -> None:
        """Declare what is left complete, put the result into its place, and tell how it ended."""
        if status == "finished":
            self._seal(before=None)
            _move_result(self._job.folder)
            self.tell(Finished(step=self._reader.step, status="finished", memory=self._reader.memory))
        elif status == "failed" and (found := factory_log.failure(diagnosis.tail(log, log_start))):
            self.tell(found)

    def _begin(self, first: Stepped) -> None:
        """Report the beginning once, if LLaMA-Factory has told how large the model is."""
        if any(isinstance(event, Started | Stepped) for event in self.events):
            return
        run, job = self._job.folder, self._job
        told = factory_log.parameters(_text(run.log, self._log_start))
        if told is None:
            return
        total, trainable = told
        self.tell(
            Started(
                total_steps=first.total_steps,
                world_size=job.world_size,
                global_batch=job.global_batch,
                samples=self._samples,
                total_params=total,
                trainable_params=trainable,
                pids=(),
                resumed_from_step=self._resumed_from,
                versions=FactoryEnvironment(Path(job.engine_env or "")).versions(),
            )
        )

    def _seal(self, *, before: int | None) -> None:
        """Declare checkpoints complete that are of a step before that one; None: all."""
        job = self._job
        for folder in sorted(job.folder.checkpoints.glob(f"{checkpoints.PREFIX}*")):
            step = checkpoints.step_of(folder)
            behind = before is None or 0 <= step < before
            if folder in self._saved or not behind or not (folder / LAST_WRITTEN).exists():
                continue
            began = time.monotonic()
            checkpoints.seal(folder, step=step, world_size=job.world_size, global_batch=job.global_batch)
            checkpoints.prune(job.folder.checkpoints, keep=job.save_total_limit)
            self._saved.add(folder)
            self.tell(Saved(step=step, path=str(folder), seconds=time.monotonic() - began))


def _move_result(run: RunDir) -> None:
    """LLaMA-Factory writes the result beside the checkpoints: move it to where results of runs are."""
    run.final.mkdir(exist_ok=True)
    for path in run.checkpoints.iterdir():
        if path.is_file() and path.name != factory_log.LOG_FILE:
            path.replace(run.final / path.name)


def _text(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
