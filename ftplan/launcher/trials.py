"""Measures configurations for a few steps each on the real devices, as many as possible in one process.

A process that dies or hangs costs the trial that was running; another one goes on with those left. What was measured is
kept in the folder, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ftplan.errors import InputError
from ftplan.files import append_line, end_line, write_atomic
from ftplan.launcher import artifacts, diagnosis, monitor
from ftplan.launcher.process import Child, Outcome
from ftplan.launcher.trial_job import (
    BEGINS,
    Trial,
    Trialled,
    TrialsJob,
    TrialsSetup,
    TrialStatus,
    from_line,
    ranks_of,
    to_line,
    training_job,
)

__all__ = ["Limits", "Trial", "Trialled", "TrialsJob", "TrialsSetup", "group", "run_trials", "training_job"]

MODULE: Final = "ftplan.launcher.train.rehearse"
POLL_SECONDS: Final = 0.1
RESULTS: Final = "trials.jsonl"
JOB: Final = "trials-job.json"
LOG: Final = "trials.log"
FINAL: Final = frozenset({"measured", "out_of_memory"})
"""Results that a later run in the same folder takes as they are."""

_OUT_OF_MEMORY: Final = re.compile(r"OutOfMemoryError|out of memory")

OnResult = Callable[[Trialled], None]


class Limits(NamedTuple):
    """Seconds a process may take: to import everything and end its first trial, for each later one, and to exit."""

    first: float = 300.0
    trial: float = 120.0
    exit: float = 15.0


class Sharing(NamedTuple):
    """What trials must have in common to share a process.

    The number of ranks (None: alone, without torchrun), the allocator's segments, DeepSpeed, which takes over the
    process group, and whether that group has collectives on the host.
    """

    ranks: int | None
    expandable_segments: bool
    deepspeed: bool
    host_collectives: bool


@dataclass(frozen=True)
class _Session:
    """What all processes of one `run_trials` share."""

    setup: TrialsSetup
    folder: Path
    deadline: float
    limits: Limits
    on_result: OnResult

    @property
    def results(self) -> Path:
        return self.folder / RESULTS

    @property
    def log(self) -> Path:
        return self.folder / LOG

    def conclude(self, told: Trialled) -> None:
        """Hand on a result that no worker wrote, and keep it as if one had."""
        append_line(self.results, to_line(told).decode().rstrip())
        self.on_result(told)


def run_trials(
    trials: Sequence[Trial],
    setup: TrialsSetup,
    *,
    folder: Path,
    deadline: float,
    on_result: OnResult,
    limits: Limits = Limits(),  # noqa: B008 - immutable
) -> None:
    """Measure each of ``trials`` before ``deadline`` (`time.monotonic`), handing each result on as it arrives.

    ``folder`` keeps the results, the workers' log and their job. A trial that it holds measured or out of memory, by
    its id, is handed on at once; one that failed is tried again.
    """
    assert len({trial.id for trial in trials}) == len(trials), "two trials have one id"
    session = _Session(setup, folder.absolute(), deadline, limits, on_result)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(session.results)
    for trial in trials:
        if trial.id in kept:
            on_result(kept[trial.id])
    for together in group([trial for trial in trials if trial.id not in kept], setup):
        _measure(together, session)


def group(trials: Iterable[Trial], setup: TrialsSetup) -> list[list[Trial]]:
    """``trials`` by the process they can share, the group of the first trial first, each in their order.

    Those with Liger's kernels come last in theirs: they replace classes for good.
    """
    groups: dict[Sharing, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_sharing(trial, setup), []).append(trial)
    return [sorted(together, key=lambda trial: trial.config.kernels != "none") for together in groups.values()]


def _sharing(trial: Trial, setup: TrialsSetup) -> Sharing:
    config = trial.config
    return Sharing(
        ranks=None if artifacts.is_alone(config, setup.device) else ranks_of(config, setup),
        expandable_segments=config.expandable_segments,
        deepspeed=config.sharding in artifacts.ZERO_STAGES,
        host_collectives=artifacts.fsdp_config(config) is not None and config.offload != "none",
    )


def _kept(results: Path) -> dict[str, Trialled]:
    """Final results of an earlier run, by trial, the first of each."""
    kept: dict[str, Trialled] = {}
    for told in filter(None, map(from_line, monitor.LineReader(results).read())):
        if told.status in FINAL:
            kept.setdefault(told.trial, told)
    return kept


def _measure(trials: Iterable[Trial], session: _Session) -> None:
    """Measure trials that share processes: one of them, if none dies."""
    left: dict[str, Trial] = {}
    for trial in trials:
        try:
            artifacts.check_launchable(trial.config, session.setup.device)
            left[trial.id] = trial
        except InputError as error:
            session.conclude(Trialled(trial.id, "failed", message=str(error)))
    while left:
        if time.monotonic() < session.deadline:
            _Attempt(left, session).run()
        else:
            session.on_result(Trialled(_next(left).id, "no_time"))
            del left[_next(left).id]


class _Attempt:
    """One process, until it ends or a trial takes too long; removes from ``left`` what it has handed on.

    A failure that one of several ranks reports is held until the process has ended: the others fail after it, and
    another of them may know the cause.
    """

    def __init__(self, left: dict[str, Trial], session: _Session) -> None:
        self._left = left
        self._session = session
        self._ranks = ranks_of(_next(left).config, session.setup)
        end_line(session.results)
        self._reader = monitor.LineReader(session.results, monitor.size_of(session.results))
        self._log_start = monitor.size_of(session.log)
        self._held: list[Trialled] = []
        self._measured = False
        self._since = time.monotonic()
        self._limit = session.limits.first

    def run(self) -> None:
        """Start the process and follow it to its end."""
        argv, environment = self._command()
        outcome, reason = None, ""
        with Child(argv, environment, self._session.log) as child:
            while outcome is None and not (reason := self._overdue()):
                outcome = child.wait(POLL_SECONDS)
                self._read()
        self._read()
        self._conclude(outcome, reason)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        setup, session, config = self._session.setup, self._session, _next(self._left).config
        common = {name: getattr(setup, name) for name in TrialsSetup.model_fields} | {"world_size": self._ranks}
        job = TrialsJob(**common, trials=tuple(self._left.values()), results=str(session.results))
        file = session.folder / JOB
        write_atomic(file, job.model_dump_json(indent=2) + "\n")
        environment = {
            **artifacts.worker_environment(setup.threads_per_process),
            **artifacts.OFFLINE,
            **artifacts.device_environment(config, setup.device),
        }
        ranks = None if artifacts.is_alone(config, setup.device) else self._ranks
        return artifacts.command(MODULE, str(file), ranks=ranks), environment

    def _overdue(self) -> str:
        """Why to wait no longer, if so."""
        now, limits = time.monotonic(), self._session.limits
        if now > self._session.deadline:
            return "the deadline has passed"
        limit = limits.exit if self._held or not self._left else self._limit
        return f"took longer than {limit:.0f} s" if now - self._since > limit else ""

    def _read(self) -> None:
        for told in filter(None, map(from_line, self._reader.read())):
            if told.trial not in self._left:
                continue
            self._since, self._limit = time.monotonic(), self._session.limits.trial
            if told.status != "measured" and self._ranks > 1:
                self._held.append(told)
            else:
                self._measured = True
                del self._left[told.trial]
                self._session.on_result(told)

    def _conclude(self, outcome: Outcome | None, reason: str) -> None:
        """Hand on why the trial failed that was running, if one was."""
        if self._held:
            told = min(self._held, key=lambda held: held.status == "failed")
            del self._left[told.trial]
            self._session.on_result(told)
            return
        if not self._left or (outcome is None and time.monotonic() > self._session.deadline):
            return
        if outcome is not None and outcome.ok and self._measured:
            return  # it ended because the next trial needs a process of its own
        seconds = time.monotonic() - self._since
        status, message = self._died(outcome) if outcome is not None else ("failed", reason)
        running = _next(self._left)
        del self._left[running.id]
        self._session.conclude(Trialled(running.id, status, seconds=seconds, message=message))

    def _died(self, outcome: Outcome) -> tuple[TrialStatus, str]:
        """How a process ended that told nothing, from what it logged since the trial began."""
        _, begins, tail = diagnosis.tail(self._session.log, self._log_start).rpartition(BEGINS)
        tail = tail.partition("\n")[2] if begins else tail
        found = diagnosis.diagnose([], outcome, tail)
        message = "; ".join(filter(None, (found.message, found.hint)))
        # The system kills a process with SIGKILL when the host has no memory; nobody else here does.
        killed = outcome.signal == signal.SIGKILL or "killed by SIGKILL" in found.message
        return ("out_of_memory" if killed or _OUT_OF_MEMORY.search(tail) else "failed"), message


def _next(left: dict[str, Trial]) -> Trial:
    """The trial that a process does, or would do, now."""
    return next(iter(left.values()))
