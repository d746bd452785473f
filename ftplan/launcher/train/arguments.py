"""A job as keyword arguments of TRL's ``SFTConfig``."""

from __future__ import annotations

from typing import Any

from ftplan.launcher import artifacts, trackers
from ftplan.launcher.job import TrainJob


def sft_arguments(job: TrainJob) -> dict[str, Any]:
    """Every argument that differs from TRL's default or that the configuration states."""
    return {**_length(job), **_batch(job), **_precision(job), **_optimizer(job), **_keeping(job), **_distribution(job)}


def _length(job: TrainJob) -> dict[str, Any]:
    return {"max_steps": job.max_steps} if job.max_steps is not None else {"num_train_epochs": job.epochs}


def _batch(job: TrainJob) -> dict[str, Any]:
    config = job.config
    return {
        "per_device_train_batch_size": config.micro_batch,
        "per_device_eval_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "max_length": config.seq_len,
        "packing": config.packing,
        # Rows come tokenized, cut and packed.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # Random rows in order, so that where batches are padded each holds a shorter one.
        **({"train_sampling_strategy": "sequential"} if job.data.synthetic else {}),
    }


def _precision(job: TrainJob) -> dict[str, Any]:
    config = job.config
    return {
        # Left out, TRL would turn bf16 and checkpointing on.
        "bf16": config.precision == "bf16",
        "fp16": config.precision == "fp16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        "use_liger_kernel": config.kernels == "liger",
    }


def _optimizer(job: TrainJob) -> dict[str, Any]:
    return {
        "optim": job.config.optimizer,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": job.lr_scheduler,
        "warmup_steps": job.warmup_steps,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "seed": job.seed,
    }


def _keeping(job: TrainJob) -> dict[str, Any]:
    evaluates = job.data.eval_fraction > 0
    every = {} if job.save_steps is None else {"save_steps": job.save_steps}
    return {
        "output_dir": str(job.folder.checkpoints),
        "save_strategy": "steps" if every else "no",
        **every,
        # The trainer counts folders, not complete checkpoints: `callbacks.Keeper` deletes old ones instead.
        "save_total_limit": None,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": job.save_steps if evaluates else None,
        "logging_steps": job.logging_steps,
        "logging_first_step": True,
        # With the filter a loss that is no number would be replaced by the mean of the last ones, and never seen.
        "logging_nan_inf_filter": False,
        "report_to": trackers.reported_to(job) or "none",
        "run_name": job.run_id,
        "disable_tqdm": True,
    }


def _distribution(job: TrainJob) -> dict[str, Any]:
    fsdp = artifacts.fsdp_config(job.config)
    return {
        # Without it accelerate looks for GPUs only, finds one process, and every rank trains alone.
        "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device == "cuda",
        "ddp_find_unused_parameters": False,
        "ddp_timeout": job.timeout_seconds,
        "deepspeed": artifacts.deepspeed_config(job),
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": job.config.sync_each_batch}},
        **({"fsdp": True, "fsdp_config": fsdp} if fsdp else {}),
        **({"parallelism_config": _hybrid(job)} if job.config.sharding == "hsdp" else {}),
        # Offloaded gradients are on the host, and clipping reduces their norm there.
        **(
            {"ddp_backend": "cpu:gloo,cuda:nccl"}
            if fsdp and job.config.offload != "none" and job.device == "cuda"
            else {}
        ),
    }


def _hybrid(job: TrainJob) -> Any:
    """Shards inside a machine and replicas over them: the mesh that accelerate gives to FSDP2.

    accelerate orders the mesh with the replicas outside, and torchrun numbers the ranks of a machine one after another
    (accelerate 1.15, parallelism_config.py: ``_get_mesh``), so that shards stay inside.
    """
    from accelerate import ParallelismConfig

    return ParallelismConfig(dp_replicate_size=job.nodes, dp_shard_size=job.nproc_per_node)
