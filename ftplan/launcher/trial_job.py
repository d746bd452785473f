"""What a trial is, what came out of it, and the file that tells a worker which to do. Light to import."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from ftplan.launcher import demo
from ftplan.launcher.job import DataSource, DeviceKind, Source, TrainJob
from ftplan.results import from_json, to_jsonable
from ftplan.spec import PositiveInt, RunConfig, Spec

BEGINS: Final = "ftplan trial: "
"""What the log says where a trial begins, before its id."""

TrialStatus = Literal["measured", "out_of_memory", "failed", "no_time"]


class Trial(Spec):
    """A configuration to be measured. ``id`` names it among the trials of one folder, also those of an earlier run.

    ``cap_bytes`` emulates a smaller card: what the process may take of the device in all, None for the whole device.
    ``architecture`` is a folder with a config.json, where it is not that of the setup.
    """

    id: str = Field(min_length=1)
    config: RunConfig
    cap_bytes: Annotated[int, Field(gt=0)] | None = None
    architecture: str | None = Field(default=None, min_length=1)


class TrialsSetup(Spec):
    """What trials have in common.

    ``architecture`` is a folder with a config.json, an absolute path. ``world_size`` counts the devices, one rank each;
    a configuration that is not sharded uses one of them. ``steps`` optimizer steps are timed, after ``warmup_steps``
    that are not. Each step has ``max_accumulation`` micro-batches at most: two at least, because a micro-batch that
    ends without the optimizer takes another time than one that ends with it. ``threads_per_process`` is for the CPU
    libraries of each rank.
    """

    architecture: str = Field(min_length=1)
    world_size: PositiveInt
    device: DeviceKind
    seed: int = 42
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    steps: PositiveInt = 3
    max_accumulation: Annotated[int, Field(ge=2)] = 3
    threads_per_process: PositiveInt = 1


class TrialsJob(TrialsSetup):
    """Trials for one process, or for one process a rank, in order; ``results`` is a file of JSON lines."""

    trials: tuple[Trial, ...] = Field(strict=False, min_length=1)
    results: str = Field(min_length=1)


@dataclass(frozen=True)
class Trialled:
    """The end of a trial. A figure that could not be measured is None.

    Attributes:
        trial: the trial's id.
        status: out of memory is the device's or the host's; ``no_time``: the deadline came first.
        step_seconds: one optimizer step with all of the configuration's micro-batches, of which some may be computed:
            (accumulation - 1) times the mean micro-batch, and the last one with the optimizer's step; the median of
            the timed steps, of the slowest rank.
        micro_batch_seconds: the mean micro-batch without the optimizer's step; None where each step has but one.
        tokens_per_second: of all ranks; padding counts.
        peak_allocated_bytes: the worst rank's, as the two that follow; None on a CPU.
        peak_reserved_bytes: of the caching allocator.
        process_bytes: what the device had in use, at the allocator's peak. None on a CPU: a process's resident memory
            is that of all its trials.
        seconds: how long the trial took, from building the model to its end.
        message: why it failed, or has no memory.

    """

    trial: str
    status: TrialStatus
    step_seconds: float | None = None
    micro_batch_seconds: float | None = None
    tokens_per_second: float | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    process_bytes: int | None = None
    seconds: float = 0.0
    message: str = ""


def to_line(told: Trialled) -> bytes:
    """``told`` as one JSON line."""
    return json.dumps(to_jsonable(told)).encode() + b"\n"


def from_line(line: bytes) -> Trialled | None:
    """What `to_line` wrote; None for anything else, such as a line that a kill cut short."""
    try:
        return from_json(Trialled, line)
    except ValueError:
        return None


def ranks_of(config: RunConfig, setup: TrialsSetup) -> int:
    """Processes that ``config`` runs on."""
    return 1 if config.sharding == "none" else setup.world_size


def training_job(job: TrialsJob, trial: Trial) -> TrainJob:
    """The run that ``trial`` cuts short: a few steps, accumulation bounded, on data that the worker makes itself."""
    config = trial.config
    accumulation = min(config.accumulation, job.max_accumulation)
    return TrainJob(
        run_id="trial",
        run_dir=str(Path(job.results).parent),
        config=config.model_copy(update={"accumulation": accumulation}),
        inventory=f"{job.world_size}x{job.device}",
        global_batch=config.micro_batch * accumulation * job.world_size,
        world_size=job.world_size,
        nproc_per_node=job.world_size,
        device=job.device,
        model=Source(kind="random", location=trial.architecture or job.architecture),
        # It pads rows of random tokens, and nothing else.
        tokenizer=demo.tokenizer(),
        data=DataSource(synthetic=True),
        max_steps=job.warmup_steps + job.steps,
        seed=job.seed,
        save_steps=None,
        threads_per_process=job.threads_per_process,
        tensorboard=False,
    )
