"""A `TrainJob` as text and data: argv, environment, launch script, DeepSpeed and FSDP settings. Starts nothing.

What does not depend on the job's data and folder is a function of the configuration and the device, because trials
(`ftplan.launcher.trials`) start the same way.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.launcher import trackers
from ftplan.launcher.environment import Variable, caches, settled
from ftplan.launcher.job import DeviceKind, TrainJob
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.spec import RunConfig

WORKER_MODULE: Final = "ftplan.launcher.train"
ZERO_STAGES: Final[Mapping[str, int]] = {"zero1": 1, "zero2": 2, "zero3": 3}
OFFLINE: Final[Mapping[str, str]] = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Without it, peft and trl ask the hub about a model that is a local folder, and wait for a timeout."""
ALLOCATOR: Final = "PYTORCH_ALLOC_CONF"
FORMER_ALLOCATOR: Final = "PYTORCH_CUDA_ALLOC_CONF"
"""The older name of `ALLOCATOR`, which torch still reads where that one is not set."""
PLANNED: Final = frozenset({"CUDA_VISIBLE_DEVICES", ALLOCATOR, FORMER_ALLOCATOR})
"""What the estimate rests on: a value of the user's own would make it another run."""
WHY: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "this machine's cores, shared by its processes; torchrun would say 1",
    "PYTHONUNBUFFERED": "the log has every line at once",
    "TOKENIZERS_PARALLELISM": "tokenizer threads and forked loaders deadlock",
    "TENSORBOARD_LOGGING_DIR": "curves lie beside the run",
    "HF_HUB_OFFLINE": "everything is local: no waiting for the hub",
    "HF_DATASETS_OFFLINE": "everything is local: no waiting for the hub",
    "CUDA_VISIBLE_DEVICES": "the devices of the plan",
    ALLOCATOR: "the allocator that the plan counts on",
    FORMER_ALLOCATOR: "the allocator that the plan counts on",
    "GLOO_SOCKET_IFNAME": "the way to node 0; the host's name may lead to loopback",
    "NCCL_SOCKET_IFNAME": "--interface",
}


def argv(job: TrainJob, job_file: str, python: str | None = None) -> list[str]:
    """The command that starts every rank of ``job`` on this machine.

    ``python`` is this interpreter unless given.
    """
    ranks = None if is_alone(job.config, job.device) else job.nproc_per_node
    return command(WORKER_MODULE, job_file, ranks=ranks, python=python, rendezvous=job.rendezvous)


def is_alone(config: RunConfig, device: DeviceKind) -> bool:
    """Whether ``config`` runs as one process without torchrun.

    torchrun starts a single CPU process too: what the ranks see is then the same for one and for many. A single GPU
    goes without, because under torchrun accelerate makes a process group there, and NCCL takes 0.55 GiB for it (H100,
    torch 2.11).
    """
    return device == "cuda" and config.sharding == "none"


def command(
    module: str,
    job_file: str,
    *,
    ranks: int | None,
    python: str | None = None,
    rendezvous: Rendezvous | None = None,
) -> list[str]:
    """The command that runs ``module`` on ``job_file``: under torchrun with so many ranks here, or alone for None."""
    start = [python or sys.executable]
    if ranks is not None:
        meeting = rendezvous.torchrun_options() if rendezvous else ["--standalone"]
        start += ["-m", "torch.distributed.run", *meeting, "--nproc_per_node", str(ranks)]
    return [*start, "-m", module, job_file]


def environment(job: TrainJob) -> dict[str, str]:
    """What the processes need in their environment beside what they inherit, whatever the user has set there."""
    return dict(settled(variables(job, {}), {}).values)


def variables(job: TrainJob, environ: Mapping[str, str]) -> tuple[Variable, ...]:
    """What the run sets, with reasons; ``environ`` is what its processes would inherit."""
    wanted = {
        **worker_environment(job.threads_per_process),
        **trackers.environment(job),
        **({} if _needs_hub(job) else OFFLINE),
        **device_environment(job.config, job.device),
        **(job.rendezvous.environment() if job.rendezvous else {}),
    }
    return (*explained(wanted), *cache_variables(job, environ))


def explained(wanted: Mapping[str, str]) -> tuple[Variable, ...]:
    """``wanted`` with reasons, and whether the plan counts on each."""
    return tuple(Variable(name, value, WHY.get(name, ""), name in PLANNED) for name, value in wanted.items())


def cache_variables(job: TrainJob, environ: Mapping[str, str]) -> tuple[Variable, ...]:
    """Where libraries keep their caches; nothing for a machine that is not known, as by an empty ``environ``."""
    if not environ and job.cache_dir is None:
        return ()
    return caches(job.cache_dir, nodes=job.nodes, home=Path.home(), environ=environ)


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
    variables[ALLOCATOR] = f"expandable_segments:{config.expandable_segments}"
    if FORMER_ALLOCATOR in os.environ:
        variables[FORMER_ALLOCATOR] = variables[ALLOCATOR]
    return variables


def check_launchable(config: RunConfig, device: DeviceKind, *, nodes: int = 1) -> None:
    """Raise InputError for what would train, but not as configured."""
    sharding = config.sharding
    if device == "cpu" and fsdp_config(config) is not None and config.offload != "none":
        raise InputError(
            f"sharding {sharding} offloads from GPUs to the host: on CPUs everything is there already",
            hint="leave the offload out",
            field="offload",
        )
    if sharding == "hsdp" and nodes == 1:
        raise InputError(
            "sharding hsdp spreads over several machines, and this is one",
            hint="use fsdp2",
            field="sharding",
        )


def check_rendezvous(job: TrainJob) -> None:
    """Raise InputError where the machines of ``job`` and those that would meet are not the same."""
    meeting = job.rendezvous
    if job.nodes > 1 and meeting is None:
        raise InputError(
            f"the plan is for {job.nodes} machines, and nothing says where they meet",
            hint=f"on each of them: --nodes {job.nodes} --node-rank R --rdzv-endpoint HOST:PORT, HOST being node 0; "
            "or let a scheduler do it: ftplan plan --format slurm",
            field="nodes",
        )
    if meeting is not None and meeting.nodes != job.nodes:
        raise InputError(
            f"the plan is for {job.nodes} machine(s), and {meeting.origin} says {meeting.nodes}",
            hint=f"plan for {meeting.nodes} (--gpus {meeting.nodes}x8xH100 is nodes x GPUs), or run it with "
            f"--nodes {job.nodes}",
            field="nodes",
        )
    if meeting is not None and meeting.is_elastic and job.config.sharding != "ddp":
        raise InputError(
            f"sharding {job.config.sharding} cannot go on with fewer nodes: each holds a part of the state",
            hint=f"use ddp, or --nodes {meeting.nodes}",
            field="nodes",
        )


def launch_script(job: TrainJob, job_file: str = "job.json", python: str = "python") -> str:
    """A bash script, to be kept beside ``job_file``, that starts the same processes by hand."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Run {job.run_id}: {job.world_size} process(es), global batch {job.global_batch}.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        *(f"export {name}={shlex.quote(value)}" for name, value in environment(job).items()),
        f"exec {shlex.join(argv(job, job_file, python))}",
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
    return bool(job.data.hub_sets) or "hub" in (job.model.kind, job.tokenizer.kind)
