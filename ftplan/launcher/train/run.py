"""One rank of a training run, from its job to the saved result."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from ftplan.errors import InputError
from ftplan.estimators.trace.checkpoints import checkpointing
from ftplan.launcher import checkpoints
from ftplan.launcher.artifacts import ZERO_STAGES
from ftplan.launcher.events import Finished, Noted
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.launcher.train.arguments import sft_arguments
from ftplan.launcher.train.callbacks import Keeper, Reports, Setting, Stopper
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.dataset import Prepared, prepare
from ftplan.launcher.train.export import export
from ftplan.launcher.train.guard import Guard
from ftplan.launcher.train.measure import StepClock
from ftplan.launcher.train.model import build_model, cast_adapters, load_tokenizer
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.trainer import PlannedTrainer
from ftplan.profiles.stacks import load_stack


def train(job: TrainJob, guard: Guard, reporter: Reporter) -> None:
    """Train to the end, or until asked to stop; raises whatever goes wrong."""
    torch.set_num_threads(job.threads_per_process)
    tokenizer = load_tokenizer(job.tokenizer)
    data = prepare(job.data, tokenizer, job.seed)
    # The arguments start the process group, and with ZeRO-3 decide how a model is loaded: they come before the model.
    arguments = SFTConfig(**sft_arguments(job), assistant_only_loss=data.assistant_only_loss)
    _use_plain_cpu(arguments)
    _join_deepspeed(job)
    setting = Setting(job, RunDir(Path(job.run_dir)), Control(), reporter, guard, StepClock())
    _check_world(job, setting.control)
    if data.note:
        setting.report(Noted(data.note))
    checkpoint = _checkpoint(setting)
    stopper = Stopper(setting)
    trainer = _trainer(setting, arguments, tokenizer, data, stopper)
    with _checkpointing(trainer.model, job):
        trainer.train(resume_from_checkpoint=checkpoint)
    _finish(setting, trainer, stopper)


def _checkpointing(model: torch.nn.Module, job: TrainJob) -> AbstractContextManager[None]:
    """Checkpoints where ZeRO-3 lets go of frozen weights after each layer."""
    if job.config.sharding != "zero3" or not job.config.trains_adapters:
        return nullcontext()
    return checkpointing(model.modules(), calls=load_stack(job.config.stack).checkpoints_calls)


def _trainer(
    setting: Setting, arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase, data: Prepared, stopper: Stopper
) -> PlannedTrainer:
    job = setting.job
    trainer = PlannedTrainer(
        loss_path=job.config.loss_path,
        global_batch=job.global_batch,
        model=build_model(job, setting.control),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
        callbacks=[stopper, Keeper(setting)],
    )
    trainer.add_callback(Reports(setting, trainer))
    if job.config.trains_adapters and job.config.sharding != "zero3":
        cast_adapters(trainer.model, job.config)
    _check_batch(job, trainer)
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
    return str(found.path)


def _finish(setting: Setting, trainer: PlannedTrainer, stopper: Stopper) -> None:
    if not stopper.stopped:
        export(trainer, setting.run.final, setting.control, adapters=setting.job.config.trains_adapters)
    memory = setting.memory()
    setting.guard.training_ends()
    setting.control.barrier()
    status: Literal["interrupted", "finished"] = "interrupted" if stopper.stopped else "finished"
    setting.report(Finished(step=trainer.state.global_step, status=status, memory=memory))


def _use_plain_cpu(arguments: SFTConfig) -> None:
    """Drop the index of the device ``cpu:0``: transformers 5.17 restores optimizers to it, which torch refuses."""
    if arguments.device.type == "cpu":
        arguments.__dict__["_setup_devices"] = torch.device("cpu")


def _join_deepspeed(job: TrainJob) -> None:
    """Tell DeepSpeed about the process group; on a CPU accelerate does so after ZeRO-3 needs it to build the model."""
    if job.config.sharding not in ZERO_STAGES:
        return
    import deepspeed

    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("gloo" if job.device == "cpu" else "nccl")


def _check_world(job: TrainJob, control: Control) -> None:
    if control.world_size != job.world_size:
        raise RuntimeError(
            f"{control.world_size} process(es) work together where the job has {job.world_size}: "
            "they were not started by torchrun, or did not find each other"
        )


def _check_batch(job: TrainJob, trainer: PlannedTrainer) -> None:
    arguments = trainer.args
    ranks = trainer.accelerator.num_processes
    batch = ranks * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    if batch != job.global_batch:
        raise RuntimeError(f"the trainer would use a global batch of {batch}, not of {job.global_batch}")
