"""What happens beside the training: reports, complete checkpoints, and stopping on request."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftplan.launcher import checkpoints, resharding
from ftplan.launcher.artifacts import ZERO_STAGES, fsdp_config
from ftplan.launcher.events import Evaluated, Event, RankMemory, Saved, Started, Stepped
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.measure import StepClock, rank_memory
from ftplan.launcher.train.model import count_parameters
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.trainer import PlannedTrainer
from ftplan.launcher.train.versions import versions


class NonFiniteLossError(Exception):
    """The loss is no longer a number."""


@dataclass
class Setting:
    """What the callbacks share: the job, its folder, the other ranks, and where to report."""

    job: TrainJob
    run: RunDir
    control: Control
    reporter: Reporter
    guard: Guard
    clock: StepClock
    resumed_from_step: int | None = None

    def report(self, event: Event) -> None:
        """Report from rank 0."""
        if self.control.is_main:
            self.reporter.report(event)

    def memory(self) -> tuple[RankMemory, ...]:
        """Every rank's memory; every rank must ask."""
        return tuple(self.control.gather(rank_memory(self.control.rank)))


class Reports(TrainerCallback):  # type: ignore[misc]
    """Reports the beginning, every logged step and every evaluation."""

    def __init__(self, setting: Setting, trainer: PlannedTrainer) -> None:
        self._setting = setting
        self._trainer = trainer
        self._tokens = 0

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """Tell the parent what begins, and the guard which processes this one needs."""
        setting = self._setting
        check_sharded(setting.job, self._trainer)
        pids = setting.control.gather(os.getpid())
        first = setting.control.rank - int(os.environ.get("LOCAL_RANK", "0"))
        setting.guard.training_begins(tuple(pids[first : first + setting.job.nproc_per_node]))
        total, trainable = count_parameters(self._trainer.model)
        setting.clock.report()
        setting.report(
            Started(
                total_steps=state.max_steps,
                world_size=setting.control.world_size,
                global_batch=setting.job.global_batch,
                samples=self._trainer.samples,
                total_params=total,
                trainable_params=trainable,
                pids=tuple(pids),
                resumed_from_step=setting.resumed_from_step,
                versions=versions(),
            )
        )

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Report a training step; raises NonFiniteLossError if its loss is no number."""
        if not logs or "loss" not in logs:
            return
        setting, loss = self._setting, float(logs["loss"])
        step_seconds, steps = setting.clock.report()
        tokens: list[int] = setting.control.gather(self._trainer.tokens_seen - self._tokens)
        self._tokens = self._trainer.tokens_seen
        memory = setting.memory()
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss} at step {state.global_step}")
        setting.report(
            Stepped(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(state.epoch or 0.0),
                loss=loss,
                learning_rate=float(logs.get("learning_rate", 0.0)),
                grad_norm=_finite(logs.get("grad_norm")),
                step_seconds=step_seconds,
                tokens_per_second=sum(tokens) / (step_seconds * steps),
                memory=memory,
            )
        )

    def on_evaluate(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Report the loss on the held-out rows."""
        self._setting.clock.exclude()
        if metrics and "eval_loss" in metrics:
            self._setting.report(Evaluated(step=state.global_step, loss=metrics["eval_loss"]))


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Seals every checkpoint once all ranks have written their part, and keeps the newest of them."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def on_save(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        """The trainer has saved; declare it complete, then delete the oldest."""
        setting, step = self._setting, int(state.global_step)
        folder = setting.run.checkpoints / f"{checkpoints.PREFIX}{step}"
        # Rank 0 comes here while others may still write their random state.
        setting.control.barrier()
        if setting.control.is_main:
            self._seal(folder, step)
        setting.control.barrier()
        seconds = setting.clock.exclude()
        setting.report(Saved(step=step, path=str(folder), seconds=seconds))

    def _seal(self, folder: Path, step: int) -> None:
        job = self._setting.job
        checkpoints.seal(folder, step=step, world_size=job.world_size, global_batch=job.global_batch)
        checkpoints.prune(folder.parent, keep=job.save_total_limit)
        resharding.discard(self._setting.run)


class Stopper(TrainerCallback):  # type: ignore[misc]
    """Saves and stops after the step in which any rank was asked to."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.stopped = False

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Agree with the other ranks: one that stops alone leaves the others waiting."""
        setting = self._setting
        setting.clock.step_done()
        asked = setting.guard.stop_requested.is_set() or (setting.control.is_main and setting.run.stop_request.exists())
        if setting.control.any(asked) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True
        return control


def check_sharded(job: TrainJob, trainer: PlannedTrainer) -> None:
    """Assert that the sharding the job was planned with is real: the libraries drop it silently in places."""
    if job.config.sharding in ZERO_STAGES and not trainer.is_deepspeed_enabled:
        raise RuntimeError(f"DeepSpeed is not in use, though the job is sharded by {job.config.sharding}")
    if fsdp_config(job.config) is not None and not any(isinstance(p, DTensor) for p in trainer.model.parameters()):
        raise RuntimeError(f"no parameter is sharded, though the job is sharded by {job.config.sharding}")


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
