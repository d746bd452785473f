"""Measures the run at every logged step, on all ranks: for the report and, as scalars, for every tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ftplan.launcher.events import RankMemory
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.measure import StepClock, rank_memory
from ftplan.launcher.train.progress import Pace, RankReport, Seen, scalars, totals
from ftplan.launcher.train.trainer import PlannedTrainer


@dataclass(frozen=True)
class StepFigures:
    """What was measured at a logged step, by the names of `ftplan.launcher.events.Stepped`.

    ``largest`` is each rank's micro-batch with most tokens so far.
    """

    step_seconds: float
    tokens_per_second: float
    mfu: float | None
    tokens_seen: int | None
    samples_seen: int
    elapsed_seconds: float
    eta_seconds: float
    memory: tuple[RankMemory, ...]
    largest: tuple[int, ...]


class StepMeter:
    """Measures a step while the trainer logs it.

    The tokens seen are kept in the trainer's state (``num_input_tokens_seen``, which transformers leaves alone unless
    asked to count), so that a checkpoint holds them and a resumed run counts on.
    """

    def __init__(self, job: TrainJob, control: Control, clock: StepClock, trainer: PlannedTrainer) -> None:
        self._job = job
        self._control = control
        self._clock = clock
        self._trainer = trainer
        self._seen = Seen()
        self._tokens_before: int | None = 0
        self._pace = Pace(step=0)
        self.figures: StepFigures | None = None

    def begin(self) -> None:
        """The training begins, or goes on from a checkpoint; one of an older ftplan does not tell its tokens."""
        state = self._trainer.state
        self._clock.report()
        self._pace = Pace(state.global_step)
        told = state.num_input_tokens_seen or state.global_step == 0
        self._tokens_before = int(state.num_input_tokens_seen) if told else None

    def measure(self) -> Mapping[str, float]:
        """Measure the step that is being logged, and return it as scalars; every rank must ask."""
        state, job = self._trainer.state, self._job
        step_seconds, steps = self._clock.report()
        reports = self._control.gather(RankReport(self._trainer.seen, rank_memory(self._control.rank)))
        before, now = self._seen, totals(reports)
        self._seen = now
        tokens, token_pairs = now.tokens - before.tokens, now.token_pairs - before.token_pairs
        seconds = step_seconds * steps
        tokens_seen = None if self._tokens_before is None else self._tokens_before + now.tokens
        elapsed, left = self._pace.at(state.global_step, state.max_steps)
        self.figures = StepFigures(
            step_seconds=step_seconds,
            tokens_per_second=tokens / seconds,
            mfu=job.mfu(tokens, token_pairs, seconds),
            tokens_seen=tokens_seen,
            samples_seen=state.global_step * job.global_batch,
            elapsed_seconds=elapsed,
            eta_seconds=left,
            memory=tuple(report.memory for report in reports),
            largest=tuple(report.seen.largest for report in reports),
        )
        state.num_input_tokens_seen = tokens_seen or 0
        return dict(scalars(self.figures.memory, _numbers(self.figures)))


def _numbers(figures: StepFigures) -> dict[str, float | None]:
    return {
        "step_seconds": figures.step_seconds,
        "tokens_per_second": figures.tokens_per_second,
        "mfu": figures.mfu,
        "tokens_seen": figures.tokens_seen,
        "samples_seen": figures.samples_seen,
    }
