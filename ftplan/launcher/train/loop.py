"""The training loop as a configuration states it: what a run and a rehearsal of it share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from trl import SFTConfig

from ftplan.estimators.trace.checkpoints import checkpointing
from ftplan.estimators.trace.prompted import follow_base
from ftplan.launcher.artifacts import ZERO_STAGES, fsdp_config
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.arguments import sft_arguments
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.packed_rows import PackedRows
from ftplan.launcher.train.trainer import PlannedTrainer
from ftplan.profiles.stacks import load_stack


def trainer_arguments(job: TrainJob) -> SFTConfig:
    """The trainer's arguments for ``job``.

    Making them starts the process group, and with ZeRO-3 decides how a model is built: they come before the model.
    """
    arguments = SFTConfig(**sft_arguments(job))
    _use_plain_cpu(arguments)
    _limit_waiting(job)
    _let_fsdp_on_cpu(job)
    _join_deepspeed(job)
    return arguments


def planned_trainer(job: TrainJob, **given: object) -> PlannedTrainer:
    """The trainer of ``job``; ``given`` are `SFTTrainer`'s arguments."""
    trainer = PlannedTrainer(config=job.config, global_batch=job.global_batch, **given)
    if job.config.packing and job.config.attention != "flash_attention_2":
        # TRL takes no collator of others for packed rows.
        trainer.data_collator = PackedRows(trainer.processing_class.pad_token_id or 0)
    if job.config.trains_prompts:
        follow_base(trainer.model)
    _check_batch(job, trainer)
    return trainer


def layer_checkpoints(model: torch.nn.Module, job: TrainJob) -> AbstractContextManager[None]:
    """Checkpoints where ZeRO-3 lets go of frozen weights after each layer."""
    if job.config.sharding != "zero3" or not job.config.trains_adapters:
        return nullcontext()
    return checkpointing(model.modules(), calls=load_stack(job.config.stack).checkpoints_calls)


def check_world(job: TrainJob, control: Control) -> None:
    """Assert that the ranks of ``job`` have found each other."""
    if control.world_size != job.world_size:
        raise RuntimeError(
            f"{control.world_size} process(es) work together where the job has {job.world_size}: "
            "they were not started by torchrun, or did not find each other"
        )


def _limit_waiting(job: TrainJob) -> None:
    """Give gloo's group the job's timeout: transformers 5.23 hands it to groups of GPUs only (`_setup_devices`)."""
    if job.device == "cpu" and torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=job.timeout_seconds))


def _use_plain_cpu(arguments: SFTConfig) -> None:
    """Drop the index of the device ``cpu:0``: transformers 5.17 restores optimizers to it, which torch refuses."""
    if arguments.device.type == "cpu":
        arguments.__dict__["_setup_devices"] = torch.device("cpu")


def _let_fsdp_on_cpu(job: TrainJob) -> None:
    """Let accelerate shard over CPU processes, which torch can (gloo, a mesh of CPUs) and accelerate 1.15 does not.

    `AcceleratorState` takes up its FSDP plugin for the GPU-like kinds of `DistributedType` only, and drops it silently
    for ``MULTI_CPU``; every later choice goes by the ``FSDP`` it then sets, and by the device, which stays a CPU.
    """
    if job.device != "cpu" or fsdp_config(job.config) is None:
        return
    if not torch.distributed.is_initialized():
        # accelerate makes no process group for a single CPU process, as it does for a single GPU under torchrun.
        torch.distributed.init_process_group("gloo")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _join_deepspeed(job: TrainJob) -> None:
    """Tell DeepSpeed about the process group; on a CPU accelerate does so after ZeRO-3 needs it to build the model."""
    if job.config.sharding not in ZERO_STAGES:
        return
    import deepspeed

    if not deepspeed.comm.is_initialized():
        timeout = timedelta(seconds=job.timeout_seconds)
        deepspeed.init_distributed("gloo" if job.device == "cpu" else "nccl", timeout=timeout)


def _check_batch(job: TrainJob, trainer: PlannedTrainer) -> None:
    arguments = trainer.args
    ranks = trainer.accelerator.num_processes
    batch = ranks * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    if batch != job.global_batch:
        raise RuntimeError(f"the trainer would use a global batch of {batch}, not of {job.global_batch}")
