"""A `TrainJob` as text and data: argv, environment, launch script, DeepSpeed and FSDP settings. Starts nothing."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.launcher.job import TrainJob
from ftplan.spec import RunConfig

WORKER_MODULE: Final = "ftplan.launcher.train"
ZERO_STAGES: Final[Mapping[str, int]] = {"zero1": 1, "zero2": 2, "zero3": 3}


def argv(job: TrainJob, job_file: str, python: str | None = None) -> list[str]:
    """The command that starts every rank of ``job`` on this machine.

    torchrun starts a single CPU process too: what the ranks see is then the same for one and for many. A single GPU
    goes without, because under torchrun accelerate makes a process group there, and NCCL takes 0.55 GiB for it (H100,
    torch 2.11). ``python`` is this interpreter unless given. Raises InputError for a job on several machines.
    """
    if job.nodes > 1:
        raise InputError(
            f"the job spans {job.nodes} machines, and only one can be launched from here",
            hint="plan for the devices of one machine",
            field="gpus",
        )
    if _is_alone(job):
        return [python or sys.executable, "-m", WORKER_MODULE, job_file]
    torchrun = [python or sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc_per_node", str(job.nproc_per_node), "-m", WORKER_MODULE, job_file]


def environment(job: TrainJob) -> dict[str, str]:
    """What the processes need in their environment beside what they inherit."""
    variables = {
        "OMP_NUM_THREADS": str(job.threads_per_process),
        "PYTHONUNBUFFERED": "1",
        # Tokenizer threads and forked loader processes deadlock; the data is small against the training.
        "TOKENIZERS_PARALLELISM": "false",
        # Since transformers 5.15 this is the only way to say where TensorBoard's files go.
        "TENSORBOARD_LOGGING_DIR": str(Path(job.run_dir) / "tensorboard"),
    }
    if not _needs_hub(job):
        # Without this, peft and trl ask the hub about a model that is a local folder, and wait for a timeout.
        variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if _is_alone(job):
        # With several cards in sight and no process group, the trainer would split batches over all of them.
        variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    if job.device == "cpu":
        # A machine with GPUs must not use them for a job that was planned for its CPU.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    elif job.config.expandable_segments:
        variables["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return variables


def _is_alone(job: TrainJob) -> bool:
    return job.device == "cuda" and job.config.sharding == "none"


def launch_script(job: TrainJob, job_file: str = "job.json", python: str = "python") -> str:
    """A bash script, to be kept beside ``job_file``, that starts the same processes by hand."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Run {job.run_id}: {job.world_size} process(es), global batch {job.global_batch}.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        *(f"export {name}={shlex.quote(value)}" for name, value in environment(job).items()),
        f"exec {_wrapped(argv(job, job_file, python))}",
    ]
    return "\n".join(lines) + "\n"


def files(job: TrainJob) -> dict[str, str]:
    """Every file that launches ``job``, by name: relative to one folder."""
    return {"job.json": job.model_dump_json(indent=2) + "\n", "launch.sh": launch_script(job)}


def deepspeed_config(job: TrainJob) -> dict[str, Any] | None:
    """DeepSpeed's JSON for ``job``; None where it is not sharded by ZeRO.

    Bucket sizes and thresholds are transformers' "auto": multiples of the hidden size.
    """
    config = job.config
    if config.sharding not in ZERO_STAGES:
        return None
    return {
        "train_batch_size": job.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": job.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_optimization": _zero(config),
    }


def fsdp_config(config: RunConfig) -> dict[str, Any] | None:
    """The ``fsdp_config`` of transformers for ``config``; None where it is not sharded by FSDP."""
    if config.sharding not in ("fsdp2", "fsdp2-grad-op", "hsdp"):
        return None
    return {
        "version": 2,
        "reshard_after_forward": config.sharding != "fsdp2-grad-op",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": config.offload != "none",
        "cpu_ram_efficient_loading": config.quantization == "none",
        "state_dict_type": "SHARDED_STATE_DICT",
    }


def _zero(config: RunConfig) -> dict[str, Any]:
    stage = ZERO_STAGES[config.sharding]
    settings: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        settings |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if config.offload != "none":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "optimizer+params" and stage == 3:
        settings["offload_param"] = {"device": "cpu", "pin_memory": True}
    return settings


def _needs_hub(job: TrainJob) -> bool:
    return job.data.hub is not None or "hub" in (job.model.kind, job.tokenizer.kind)


def _wrapped(command: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in command)
