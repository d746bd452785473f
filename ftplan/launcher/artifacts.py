"""A `TrainJob` as text and data: argv, environment, launch script, DeepSpeed and FSDP settings. Starts nothing.

What does not depend on the job's data and folder is a function of the configuration and the device, because trials
(`ftplan.launcher.trials`) start the same way.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.launcher.job import DeviceKind, TrainJob
from ftplan.spec import RunConfig

WORKER_MODULE: Final = "ftplan.launcher.train"
ZERO_STAGES: Final[Mapping[str, int]] = {"zero1": 1, "zero2": 2, "zero3": 3}
OFFLINE: Final[Mapping[str, str]] = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Without it, peft and trl ask the hub about a model that is a local folder, and wait for a timeout."""


def argv(job: TrainJob, job_file: str, python: str | None = None) -> list[str]:
    """The command that starts every rank of ``job`` on this machine.

    ``python`` is this interpreter unless given. Raises InputError for a job on several machines.
    """
    if job.nodes > 1:
        raise InputError(
            f"the job spans {job.nodes} machines, and only one can be launched from here",
            hint="plan for the devices of one machine",
            field="gpus",
        )
    ranks = None if is_alone(job.config, job.device) else job.nproc_per_node
    return command(WORKER_MODULE, job_file, ranks=ranks, python=python)


def is_alone(config: RunConfig, device: DeviceKind) -> bool:
    """Whether ``config`` runs as one process without torchrun.

    torchrun starts a single CPU process too: what the ranks see is then the same for one and for many. A single GPU
    goes without, because under torchrun accelerate makes a process group there, and NCCL takes 0.55 GiB for it (H100,
    torch 2.11).
    """
    return device == "cuda" and config.sharding == "none"


def command(module: str, job_file: str, *, ranks: int | None, python: str | None = None) -> list[str]:
    """The command that runs ``module`` on ``job_file``: under torchrun with so many ranks, or alone for None."""
    start = [python or sys.executable]
    if ranks is not None:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*start, "-m", module, job_file]


def environment(job: TrainJob) -> dict[str, str]:
    """What the processes need in their environment beside what they inherit."""
    return {
        **worker_environment(job.threads_per_process),
        # Since transformers 5.15 this is the only way to say where TensorBoard's files go.
        "TENSORBOARD_LOGGING_DIR": str(Path(job.run_dir) / "tensorboard"),
        **({} if _needs_hub(job) else OFFLINE),
        **device_environment(job.config, job.device),
    }


def worker_environment(threads: int) -> dict[str, str]:
    """What every worker needs, with ``threads`` for its CPU libraries."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        # Tokenizer threads and forked loader processes deadlock; the data is small against the training.
        "TOKENIZERS_PARALLELISM": "false",
    }


def device_environment(config: RunConfig, device: DeviceKind) -> dict[str, str]:
    """Which devices the processes see, and how their allocator works."""
    if device == "cpu":
        # A machine with GPUs must not use them for a job that was planned for its CPU.
        return {"CUDA_VISIBLE_DEVICES": ""}
    variables = {}
    if is_alone(config, device):
        # With several cards in sight and no process group, the trainer would split batches over all of them.
        variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    if config.expandable_segments:
        variables["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return variables


def check_launchable(config: RunConfig, device: DeviceKind) -> None:
    """Raise InputError for what would train, but not as configured."""
    sharding = config.sharding
    if device == "cpu" and fsdp_config(config) is not None and config.offload != "none":
        raise InputError(
            f"sharding {sharding} offloads from GPUs to the host: on CPUs everything is there already",
            hint="leave the offload out",
            field="offload",
        )
    if sharding == "hsdp":
        raise InputError(
            "sharding hsdp spreads over several machines, and only one can be launched from here",
            hint="use fsdp2",
            field="sharding",
        )


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

    Bucket sizes and thresholds that are not given are transformers' "auto": multiples of the hidden size.
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
        "zero_optimization": zero_optimization(config),
        **({"checkpoint": {"load_universal": True}} if job.universal_checkpoint else {}),
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


def zero_optimization(config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's section of that name; parameters are offloaded at stage 3 alone, where DeepSpeed can."""
    stage = ZERO_STAGES[config.sharding]
    settings: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": config.zero_overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": _or_auto(config.zero_reduce_bucket),
    }
    if stage == 3:
        settings |= {
            "stage3_prefetch_bucket_size": _or_auto(config.zero_prefetch_bucket),
            "stage3_param_persistence_threshold": _or_auto(config.zero_persistence_threshold),
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if config.offload != "none":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "optimizer+params" and stage == 3:
        settings["offload_param"] = {"device": "cpu", "pin_memory": True}
    return settings


def _or_auto(elements: int | None) -> int | str:
    return "auto" if elements is None else elements


def _needs_hub(job: TrainJob) -> bool:
    return job.data.hub is not None or "hub" in (job.model.kind, job.tokenizer.kind)


def _wrapped(command: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in command)
