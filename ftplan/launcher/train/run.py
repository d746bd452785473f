"""One rank of a training run, from its job to the saved result."""

from __future__ import annotations

from typing import Literal

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from ftplan.launcher import checkpoints
from ftplan.launcher.events import Finished, Noted
from ftplan.launcher.job import TrainJob
from ftplan.launcher.memory_watch import MemoryWatch
from ftplan.launcher.train import card
from ftplan.launcher.train.callbacks import Capped, Keeper, Reports, Setting, Stopper
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.dataset import Prepared, prepare
from ftplan.launcher.train.export import export
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.handing_on import build_model
from ftplan.launcher.train.instruments import FlopCounter, ProfiledSteps
from ftplan.launcher.train.loop import check_world, layer_checkpoints, planned_trainer, trainer_arguments
from ftplan.launcher.train.measure import StepClock
from ftplan.launcher.train.model import Model, adapted
from ftplan.launcher.train.nodes import settle, step_to_go_on_from
from ftplan.launcher.train.random_model import random_model
from ftplan.launcher.train.random_rows import random_rows
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.tokenizer import load_tokenizer
from ftplan.launcher.train.tokenizer_check import doubt
from ftplan.launcher.train.trainer import PlannedTrainer


def train(job: TrainJob, guard: Guard, reporter: Reporter) -> None:
    """Train to the end, or until asked to stop; raises whatever goes wrong."""
    tokenizer = load_tokenizer(job.tokenizer)
    data = _data(job, tokenizer)
    # The arguments start the process group, and with ZeRO-3 decide how a model is loaded: they come before the model.
    arguments = trainer_arguments(job)
    setting = Setting(job, job.folder, Control(job.timeout_seconds), reporter, guard, StepClock(), MemoryWatch(job))
    check_world(job, setting.control)
    settle(job, setting.control, arguments)
    card.cap(job.cap_bytes)
    for note in (*data.notes, doubt(tokenizer)):
        if note:
            setting.report(Noted(note))
    checkpoint = _checkpoint(setting)
    stopper = Stopper(setting)
    trainer = _trainer(setting, arguments, tokenizer, data, stopper)
    with layer_checkpoints(trainer.model, job):
        trainer.train(resume_from_checkpoint=checkpoint)
    _finish(setting, trainer, stopper)


def _data(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    if not job.data.synthetic:
        return prepare(job, tokenizer)
    shape = AutoConfig.from_pretrained(job.model.location, trust_remote_code=False)
    return Prepared(random_rows(job, shape.get_text_config().vocab_size), None)


def _model(setting: Setting, device: torch.device) -> Model:
    job = setting.job
    if job.model.kind == "random":
        return adapted(random_model(job, device), job)
    return build_model(job, setting.control)


def _trainer(
    setting: Setting, arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase, data: Prepared, stopper: Stopper
) -> PlannedTrainer:
    job = setting.job
    trainer = planned_trainer(
        job,
        model=_model(setting, arguments.device),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
        callbacks=[stopper, Keeper(setting), *([Capped(job.cap_bytes)] if job.cap_bytes else [])],
    )
    trainer.add_callback(Reports(setting, trainer))
    if job.count_flops:
        trainer.add_callback(FlopCounter(setting, trainer))
    if job.profile:
        trainer.add_callback(ProfiledSteps(setting))
    return trainer


def _checkpoint(setting: Setting) -> str | None:
    """Where to go on from; None for a run that begins."""
    step = step_to_go_on_from(setting.job, setting.control)
    setting.resumed_from_step = step
    if step is None:
        return None
    return setting.job.universal_checkpoint or str(setting.run.checkpoints / f"{checkpoints.PREFIX}{step}")


def _finish(setting: Setting, trainer: PlannedTrainer, stopper: Stopper) -> None:
    if not stopper.stopped and not setting.job.data.synthetic:
        export(trainer, setting.run.final, setting.control, adapters=setting.job.config.trains_adapters)
    memory = setting.memory()
    for warned in setting.watch.ended(trainer.state.global_step, memory):
        setting.report(warned)
    setting.guard.training_ends()
    setting.control.barrier()
    status: Literal["interrupted", "finished"] = "interrupted" if stopper.stopped else "finished"
    setting.report(Finished(step=trainer.state.global_step, status=status, memory=memory))
