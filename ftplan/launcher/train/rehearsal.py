"""Trials in one process, each on an emptied device: the loop of a real run, with random weights and random tokens."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from ftplan.launcher.events import RankMemory
from ftplan.launcher.failures import OUT_OF_MEMORY, kind_of, message_of
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train import card
from ftplan.launcher.train.callbacks import check_sharded
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.loop import check_world, layer_checkpoints, planned_trainer, trainer_arguments
from ftplan.launcher.train.measure import rank_memory
from ftplan.launcher.train.model import adapted
from ftplan.launcher.train.random_model import random_model
from ftplan.launcher.train.random_rows import random_rows
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.stopwatch import Stopwatch, Timing
from ftplan.launcher.train.tokenizer import load_tokenizer
from ftplan.launcher.train.trainer import PlannedTrainer
from ftplan.launcher.trial_job import BEGINS, Trial, Trialled, TrialsJob, TrialStatus, to_line, training_job
from ftplan.units import MIB

HELD_BYTES: Final = 64 * MIB
"""What a trial may leave on the device for the next one: DeepSpeed keeps some of its engines whole."""


@dataclass(frozen=True)
class _Measured:
    """What every rank knows at the end of a trial."""

    timing: Timing
    memory: RankMemory


def rehearse(job: TrialsJob, reporter: Reporter) -> bool:
    """Do the trials of ``job`` and report each; False when this process must end before the last.

    It also ends, without blame, after a trial that leaves memory behind. A process on its own goes on after a failure.
    One rank of many does not: the others may wait for it in a collective.
    """
    torch.set_num_threads(job.threads_per_process)
    is_main = os.environ.get("RANK", "0") == "0"
    environment = dict(os.environ)
    for trial in job.trials:
        if is_main:
            sys.stdout.write(f"{BEGINS}{trial.id}\n")
        started = time.monotonic()
        told = _attempt(job, trial, started)
        measured = told.status == "measured"
        if is_main or not measured:
            reporter.write(to_line(told))
        if not measured and job.world_size > 1:
            return False
        # The trainer's arguments leave variables for accelerate there, such as those of FSDP.
        _restore(environment)
        card.clean()
        if _control().any(card.held_bytes() > HELD_BYTES):
            # The next trial would be measured beside the rest of this one: it gets a process of its own.
            return True
    return True


@cache
def _control() -> Control:
    """The ranks of this process, which its first trial brings together: every group that is made would stay."""
    return Control()


def _attempt(job: TrialsJob, trial: Trial, started: float) -> Trialled:
    """The result of ``trial``; when this returns, nothing holds what it has built."""
    try:
        ranks = _run(training_job(job, trial), trial, job.warmup_steps)
    except Exception as error:
        traceback.print_exc()
        status, message = _told(error)
        # They hold the model. That of this function goes on running, and has nothing.
        traceback.clear_frames(error.__traceback__)
        return Trialled(trial.id, status, seconds=time.monotonic() - started, message=message)
    return _result(trial, ranks, time.monotonic() - started)


def _run(training: TrainJob, trial: Trial, warmup_steps: int) -> list[_Measured]:
    """Train a few steps; returns what each rank measured."""
    arguments = trainer_arguments(training)
    control = _control()
    check_world(training, control)
    card.cap(trial.cap_bytes)
    model = random_model(training, arguments.device)
    rows = random_rows(training, model.config.get_text_config().vocab_size)
    model = adapted(model, training)
    card.forget()
    watch = Stopwatch(warmup_steps, lambda: card.cap(trial.cap_bytes))
    trainer = planned_trainer(
        training,
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=load_tokenizer(training.tokenizer),
        callbacks=[watch],
    )
    with layer_checkpoints(trainer.model, training):
        trainer.train()
    check_sharded(training, trainer)
    measured = _Measured(watch.timing(trial.config.accumulation), rank_memory(control.rank))
    ranks = control.gather(measured)
    _release(trainer)
    return ranks


def _release(trainer: PlannedTrainer) -> None:
    """Let DeepSpeed's engine go of what cycles and its own tables would keep."""
    destroy = getattr(trainer.model_wrapped, "destroy", None)
    if trainer.is_deepspeed_enabled and destroy is not None:
        destroy()
    trainer.accelerator.free_memory()


def _result(trial: Trial, ranks: list[_Measured], seconds: float) -> Trialled:
    slowest = max((rank.timing for rank in ranks), key=lambda timing: timing.step_seconds)
    memory = [rank.memory for rank in ranks]
    config = trial.config
    tokens = config.tokens_per_micro_batch * config.accumulation * len(ranks)
    return Trialled(
        trial.id,
        "measured",
        step_seconds=slowest.step_seconds,
        micro_batch_seconds=slowest.micro_batch_seconds,
        tokens_per_second=tokens / slowest.step_seconds,
        peak_allocated_bytes=_worst(rank.allocated_bytes for rank in memory),
        peak_reserved_bytes=_worst(rank.reserved_bytes for rank in memory),
        # On a CPU this is the process's resident memory, which earlier trials have raised.
        process_bytes=_worst(rank.process_bytes if rank.reserved_bytes is not None else None for rank in memory),
        seconds=seconds,
    )


def _worst(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def _told(error: Exception) -> tuple[TrialStatus, str]:
    """``error`` as a status and a message."""
    message = f"{type(error).__name__}: {message_of(error)}"
    return ("out_of_memory" if kind_of(error) in OUT_OF_MEMORY else "failed"), message


def _restore(environment: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
