"""One rank of a training run, from its job to the saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from ftplan.errors import InputError
from ftplan.launcher import checkpoints
from ftplan.launcher.events import Finished, Noted
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.launcher.train.callbacks import Keeper, Reports, Setting, Stopper
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.dataset import Prepared, prepare
from ftplan.launcher.train.export import export
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.handing_on import build_model
from ftplan.launcher.train.loop import check_world, layer_checkpoints, planned_trainer, trainer_arguments
from ftplan.launcher.train.measure import StepClock
from ftplan.launcher.train.model import load_tokenizer
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.trainer import PlannedTrainer


def train(job: TrainJob, guard: Guard, reporter: Reporter) -> None:
    """Train to the end, or until asked to stop; raises whatever goes wrong."""
    torch.set_num_threads(job.threads_per_process)
    tokenizer = load_tokenizer(job.tokenizer)
    data = prepare(job.data, tokenizer, job.seed)
    # The arguments start the process group, and with ZeRO-3 decide how a model is loaded: they come before the model.
    arguments = trainer_arguments(job, assistant_only_loss=data.assistant_only_loss)
    setting = Setting(job, RunDir(Path(job.run_dir)), Control(), reporter, guard, StepClock())
    check_world(job, setting.control)
    if data.note:
        setting.report(Noted(data.note))
    checkpoint = _checkpoint(setting)
    stopper = Stopper(setting)
    trainer = _trainer(setting, arguments, tokenizer, data, stopper)
    with layer_checkpoints(trainer.model, job):
        trainer.train(resume_from_checkpoint=checkpoint)
    _finish(setting, trainer, stopper)


def _trainer(
    setting: Setting, arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase, data: Prepared, stopper: Stopper
) -> PlannedTrainer:
    job = setting.job
    trainer = planned_trainer(
        job,
        model=build_model(job, setting.control),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
        callbacks=[stopper, Keeper(setting)],
    )
    trainer.add_callback(Reports(setting, trainer))
    return trainer


def _checkpoint(setting: Setting) -> str | None:
    """Where to go on from, as rank 0 sees it; None for a fresh run."""
    if not setting.job.resume:
        return None
    found = checkpoints.latest_complete(setting.run.checkpoints) if setting.control.is_main else None
    found = setting.control.gather(found)[0]
    if found is None:
        raise InputError(f"no complete checkpoint in {setting.run.checkpoints}", field="resume")
    setting.resumed_from_step = found.step
    return setting.job.universal_checkpoint or str(found.path)


def _finish(setting: Setting, trainer: PlannedTrainer, stopper: Stopper) -> None:
    if not stopper.stopped:
        export(trainer, setting.run.final, setting.control, adapters=setting.job.config.trains_adapters)
    memory = setting.memory()
    setting.guard.training_ends()
    setting.control.barrier()
    status: Literal["interrupted", "finished"] = "interrupted" if stopper.stopped else "finished"
    setting.report(Finished(step=trainer.state.global_step, status=status, memory=memory))
