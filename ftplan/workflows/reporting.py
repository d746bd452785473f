"""What a run's folder tells about it, finished or not: predicted beside measured, its history, and how to go on."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ftplan.errors import InputError
from ftplan.launcher import checkpoints, engine, history, monitor, records
from ftplan.launcher.events import Event, Failed, Finished, Noted, RankMemory, Saved, Started, Stepped
from ftplan.launcher.history import Attempt, Curve
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir, RunState
from ftplan.launcher.summary import measure
from ftplan.results import Measured, Phase, Timeline
from ftplan.spec import RunConfig
from ftplan.workflows import promises
from ftplan.workflows.running import DEFAULT_RUNS

State = Literal["not started", "running", "abandoned", "interrupted", "failed", "finished"]


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """One launch: the steps it did (``first_step`` to ``last_step``, None for none), and how it ended."""

    number: int
    resumed_from_step: int | None
    first_step: int | None
    last_step: int | None
    world_size: int | None
    ended: str
    step_seconds: float
    changes: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A checkpoint that is complete and whose files are what its manifest says."""

    step: int
    path: str
    world_size: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that a run's folder tells; what it does not tell is None or empty.

    Attributes:
        state: ``abandoned``: it says running, but nobody runs it any more.
        steps: optimizer steps done.
        total_steps: those of the whole run, None before it began.
        measured: of the newest attempt that trained.
        phases: predicted peak of allocated bytes by phase, of the plan's worst rank.
        memory: peaks of each rank, over all attempts.
        predicted_memory: what was predicted of each rank, empty where nothing was.
        tokens: put through the model in all attempts, padding included.
        train_seconds: of the optimizer steps of all attempts.
        save_seconds: of each save.
        wall_seconds: of the newest attempt, start and imports included; None while it runs, or if it was killed.
        incomplete: folders of checkpoints that a kill left unfinished.
        way_on: the command that goes on from here, empty where there is none.

    """

    folder: str
    run_id: str
    is_rehearsal: bool
    state: State
    host: str
    config: RunConfig
    inventory: str
    global_batch: int
    steps: int
    total_steps: int | None
    predicted: Measured
    measured: Measured
    phases: Mapping[Phase, int]
    memory: tuple[RankMemory, ...]
    predicted_memory: tuple[RankMemory, ...]
    curves: tuple[Curve, ...]
    attempts: tuple[AttemptReport, ...]
    checkpoints: tuple[CheckpointReport, ...]
    incomplete: tuple[str, ...]
    tokens: int
    train_seconds: float
    save_seconds: tuple[float, ...]
    wall_seconds: float | None
    notes: tuple[str, ...]
    final: str
    way_on: str
    unreadable_lines: int


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run among others. ``problem`` says why nothing else is known of it."""

    folder: str
    state: State | None
    config: RunConfig | None
    inventory: str
    steps: int
    total_steps: int | None
    first_loss: float | None
    last_loss: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a folder, oldest first."""

    runs: tuple[RunLine, ...]


def report(folder: Path | None) -> RunReport | Runs:
    """The report of the run in ``folder`` (None: of the newest in the usual place), or a line for each run below it.

    Raises InputError where there is no run.
    """
    if folder is None:
        return _of_run(RunDir(_newest(DEFAULT_RUNS)))
    if (folder / "job.json").exists():
        return _of_run(RunDir(folder))
    below = run_folders(folder)
    if not below:
        raise InputError(f"no run in {folder}", hint="name a run's folder, or one that holds runs", field="run")
    return Runs(tuple(_line(RunDir(run)) for run in below))


def run_folders(folder: Path) -> list[Path]:
    """The folders of runs below ``folder``, oldest first."""
    jobs = sorted(folder.glob("*/job.json"), key=lambda job: (job.stat().st_mtime_ns, job))
    return [job.parent for job in jobs]


def _newest(runs: Path) -> Path:
    found = run_folders(runs)
    if not found:
        raise InputError(f"no run in {runs}", hint="ftplan report DIR names a run's folder", field="run")
    return found[-1]


def _line(run: RunDir) -> RunLine:
    try:
        job = engine.load_job(run)
    except InputError as error:
        return RunLine(str(run.root), None, None, "", 0, None, None, None, error.message)
    events = monitor.read_all(run.metrics)
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    return RunLine(
        folder=str(run.root),
        state=_state(run, records.read_state(run)),
        config=job.config,
        inventory=job.inventory,
        steps=_steps(events),
        total_steps=_total_steps(events),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


def _of_run(run: RunDir) -> RunReport:
    job = engine.load_job(run)
    following = monitor.Monitor(run.metrics)
    events = list(following.read())
    told = records.read_state(run)
    tries = history.attempts(events)
    record = records.read_record(run)
    saved = _complete(run.checkpoints)
    state = _state(run, told)
    # A record is of the newest attempt that ended: while another runs, or after it was killed, it is out of date.
    ended = record is not None and state in ("finished", "failed", "interrupted")
    return RunReport(
        folder=str(run.root),
        run_id=job.run_id,
        is_rehearsal=job.data.synthetic,
        state=state,
        host=told.host if told is not None else "",
        config=job.config,
        inventory=job.inventory,
        global_batch=job.global_batch,
        steps=_steps(events),
        total_steps=_total_steps(events) or job.max_steps,
        predicted=job.predicted,
        measured=_measured(tries, job),
        phases=_phases(job),
        memory=history.worst_memory(events),
        predicted_memory=job.predicted_ranks,
        curves=history.curves(events),
        attempts=_attempts(tries, state),
        checkpoints=tuple(CheckpointReport(one.step, str(one.path), one.world_size, _size(one.path)) for one in saved),
        incomplete=_incomplete(run, saved),
        tokens=sum(map(history.tokens, tries)),
        train_seconds=math.fsum(map(history.step_seconds, tries)),
        save_seconds=history.saving_seconds(events),
        wall_seconds=record.wall_seconds if record is not None and ended else None,
        notes=tuple(dict.fromkeys(event.message for event in events if isinstance(event, Noted))),
        final=str(run.final) if run.final.is_dir() else "",
        way_on=way_on(run, state, job.config),
        unreadable_lines=following.unreadable_lines,
    )


def _state(run: RunDir, told: RunState | None) -> State:
    if told is None:
        return "not started"
    return "abandoned" if records.is_abandoned(run, told) else told.status


def _steps(events: Sequence[Event]) -> int:
    return max((event.step for event in events if isinstance(event, Stepped | Saved | Finished)), default=0)


def _total_steps(events: Sequence[Event]) -> int | None:
    return next((event.total_steps for event in reversed(events) if isinstance(event, Started | Stepped)), None)


def _measured(tries: Sequence[Attempt], job: TrainJob) -> Measured:
    trained = [attempt for attempt in tries if attempt.steps]
    return measure(trained[-1].events if trained else (), job.nproc_per_node)


def _phases(job: TrainJob) -> Mapping[Phase, int]:
    """What the plan says of each phase; empty where it is not what the job now trains."""
    told = promises.kept(job)
    return Timeline(told.terms).by_phase if told is not None else {}


def _attempts(tries: Sequence[Attempt], state: State) -> tuple[AttemptReport, ...]:
    return tuple(
        AttemptReport(
            number=attempt.number,
            resumed_from_step=attempt.started.resumed_from_step if attempt.started is not None else None,
            first_step=attempt.steps[0].step if attempt.steps else None,
            last_step=attempt.steps[-1].step if attempt.steps else None,
            world_size=attempt.started.world_size if attempt.started is not None else None,
            ended=_ended(attempt, running=state == "running" and attempt is tries[-1]),
            step_seconds=history.step_seconds(attempt),
            changes=history.changes(attempt, tries[index - 1]) if index else (),
            hint=attempt.ended.hint if isinstance(attempt.ended, Failed) else "",
        )
        for index, attempt in enumerate(tries)
    )


def _ended(attempt: Attempt, *, running: bool) -> str:
    ended = attempt.ended
    if isinstance(ended, Failed):
        return f"failed on rank {ended.rank}: {ended.message}"
    if ended is not None:
        return ended.status
    return "running" if running else "ended without a word: killed"


def _incomplete(run: RunDir, saved: Sequence[checkpoints.Checkpoint]) -> tuple[str, ...]:
    complete = {one.path for one in saved}
    folders = sorted(path for path in run.checkpoints.glob(f"{checkpoints.PREFIX}*") if path.is_dir())
    return tuple(str(path) for path in folders if path not in complete)


def _complete(root: Path) -> list[checkpoints.Checkpoint]:
    """`checkpoints.complete`, but what did not change since it was read is not read again: a page asks every second."""
    found = (_checkpoint(folder, _stamps(folder)) for folder in checkpoints.folders(root))
    return sorted((one for one in found if one is not None), key=lambda one: one.step, reverse=True)


@lru_cache(maxsize=256)
def _checkpoint(folder: Path, _stamps: tuple[tuple[str, int, int], ...]) -> checkpoints.Checkpoint | None:
    return checkpoints.read(folder)


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Each file's path, size and time of change; without those that are deleted meanwhile."""
    found = []
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _size(folder: Path) -> int:
    return sum(size for path, size, _ in _stamps(folder) if Path(path).is_file())


def way_on(run: RunDir, state: str, config: RunConfig) -> str:
    """The command that goes on from a run in ``state``, empty where there is none."""
    folder = shlex.quote(str(run.root))
    if state == "finished":
        return f"ftplan merge {folder} --out DIR" if config.trains_lora and run.final.is_dir() else ""
    stopped = state in ("failed", "interrupted", "abandoned")
    can_go_on = stopped and checkpoints.latest_complete(run.checkpoints) is not None
    return f"ftplan run --resume --run-dir {folder}" if can_go_on else ""
