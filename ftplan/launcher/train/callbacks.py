"""What happens beside the training: reports, complete checkpoints, and stopping on request."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftplan.launcher import checkpoints, resharding
from ftplan.launcher.artifacts import ZERO_STAGES, fsdp_config
from ftplan.launcher.events import Evaluated, Event, RankMemory, Saved, Started, Stepped
from ftplan.launcher.job import TrainJob
from ftplan.launcher.memory_watch import MemoryWatch
from ftplan.launcher.records import RunDir
from ftplan.launcher.train import card
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.measure import StepClock, rank_memory
from ftplan.launcher.train.meter import StepMeter
from ftplan.launcher.train.model import count_parameters
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.trainer import PlannedTrainer
from ftplan.launcher.train.versions import versions


class NonFiniteLossError(Exception):
    """The loss, or what was trained, is no longer a number."""


@dataclass
class Setting:
    """What the callbacks share: the job, its folder, the other ranks, and where to report."""

    job: TrainJob
    run: RunDir
    control: Control
    reporter: Reporter
    guard: Guard
    clock: StepClock
    watch: MemoryWatch
    resumed_from_step: int | None = None

    def report(self, event: Event) -> None:
        """Report from the first rank of every machine, each to its own file."""
        if self.control.leads_node:
            self.reporter.report(event)

    def memory(self) -> tuple[RankMemory, ...]:
        """Every rank's memory; every rank must ask."""
        return tuple(self.control.gather(rank_memory(self.control.rank)))


class Reports(TrainerCallback):  # type: ignore[misc]
    """Reports the beginning, every logged step and every evaluation."""

    def __init__(self, setting: Setting, trainer: PlannedTrainer) -> None:
        self._setting = setting
        self._trainer = trainer
        self._meter = StepMeter(setting.job, setting.control, setting.clock, trainer)
        trainer.measure = self._meter.measure

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
        self._meter.begin()
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

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Log what is saved: the state in a checkpoint is then that of its step."""
        control.should_log |= control.should_save
        return control

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
        setting, loss, figures = self._setting, float(logs["loss"]), self._meter.figures
        assert figures is not None, "the trainer measures before it logs"
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
                step_seconds=figures.step_seconds,
                tokens_per_second=figures.tokens_per_second,
                memory=figures.memory,
                mfu=figures.mfu,
                tokens_seen=figures.tokens_seen,
                samples_seen=figures.samples_seen,
                elapsed_seconds=figures.elapsed_seconds,
                eta_seconds=figures.eta_seconds,
            )
        )
        for warned in setting.watch.stepped(state.global_step, figures.memory, figures.largest):
            setting.report(warned)

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
        self._setting.watch.evaluated()
        if metrics and "eval_loss" in metrics:
            self._setting.report(Evaluated(step=state.global_step, loss=metrics["eval_loss"]))


class Capped(TrainerCallback):  # type: ignore[misc]
    """Keeps the process within ``cap_bytes`` while what other libraries take of the device still grows."""

    STEPS: Final = 3

    def __init__(self, cap_bytes: int) -> None:
        self._cap_bytes = cap_bytes

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """Begin without what loading has left in the allocator."""
        card.forget()
        card.cap(self._cap_bytes)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        """Make the cap good again."""
        if state.global_step <= self.STEPS:
            card.cap(self._cap_bytes)


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Seals every checkpoint once all ranks have written their part, and keeps the newest of them."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def on_save(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        model: torch.nn.Module,
        **_: object,
    ) -> None:
        """The trainer has saved; declare it complete, then delete the oldest.

        Raises NonFiniteLossError, and leaves the folder unsealed, if the weights are ruined: the loss of the step that
        ruined them was still a number.
        """
        setting, step = self._setting, int(state.global_step)
        folder = setting.run.checkpoints / f"{checkpoints.PREFIX}{step}"
        if setting.control.any(not has_finite_weights(model)):
            raise NonFiniteLossError(f"weights are no longer numbers after step {step}")
        # Rank 0 comes here while others may still write their random state.
        setting.control.barrier()
        if setting.control.keeps_files:
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
        asked = setting.guard.stop_requested.is_set() or (
            setting.control.leads_node and setting.run.stop_request.exists()
        )
        if setting.control.any(asked) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True
        return control


def check_sharded(job: TrainJob, trainer: PlannedTrainer) -> None:
    """Assert that the sharding the job was planned with is real: the libraries drop it silently in places."""
    if job.config.sharding in ZERO_STAGES and not trainer.is_deepspeed_enabled:
        raise RuntimeError(f"DeepSpeed is not in use, though the job is sharded by {job.config.sharding}")
    if fsdp_config(job.config) is None:
        return
    meshes = {p.device_mesh.shape for p in trainer.model.parameters() if isinstance(p, DTensor)}
    if not meshes:
        raise RuntimeError(f"no parameter is sharded, though the job is sharded by {job.config.sharding}")
    if job.config.sharding == "hsdp" and meshes != {(job.nodes, job.nproc_per_node)}:
        raise RuntimeError(f"parameters lie on {meshes}, not on {job.nodes} machines of {job.nproc_per_node} devices")


def has_finite_weights(model: torch.nn.Module) -> bool:
    """Whether this rank's part of what trains holds numbers only.

    A sum takes no memory beside it, as `torch.isfinite` would, and no finite fp32 sum hides an inf or a NaN.
    """
    return all(
        math.isfinite(_own(parameter).sum(dtype=torch.float32).item())
        for parameter in model.parameters()
        if parameter.requires_grad
    )


def _own(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this rank holds of ``parameter`` under FSDP2 and ZeRO-3, which keep shards in ways of their own."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    shard = getattr(parameter, "ds_tensor", None)
    return (parameter if shard is None else shard).detach()


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
