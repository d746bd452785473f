"""Resume a run that stopped, where it was or on other devices.

On other devices it keeps its global batch, method and optimizer, split over another number of ranks. A step goes on
meaning the same: the trainer counts samples in the order of the seed, and a checkpoint of any number of ranks can be
read by any other (`ftplan.launcher.resharding`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ftplan.errors import DoesNotFitError, InputError
from ftplan.estimators.analytic import estimate as analytic_estimate
from ftplan.launcher import checkpoints, engine, records
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.planner import rules
from ftplan.planner.batch import splits
from ftplan.planner.inventory import parse_inventory
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import load_model
from ftplan.results import Estimate, RunRecord
from ftplan.spec import RunConfig, Sharding
from ftplan.workflows import promises, running
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.nodes import NodeOptions, meeting
from ftplan.workflows.running import DEFAULT_RUNS

FOR_PLANS: Final = (rules.deepspeed_is_on_gpu, rules.sharding_has_ranks)
"""Rules about what is worth planning. A sharded run keeps its sharding, on one device and on CPUs too: nothing else
reads its checkpoints.
"""


def resumed(folder: Path | None, asked: NodeOptions | None = None, *, waits: bool = True) -> TrainJob:
    """The job of the run in ``folder`` (or of the newest that can go on), set to resume.

    Several nodes may meet elsewhere than before. Raises InputError if there is no run.
    """
    newest = _kept_in(folder) if folder is not None else None
    if newest is None:
        runs = folder or DEFAULT_RUNS
        newest = records.newest_resumable(runs)
        if newest is None:
            raise InputError(
                f"no run to resume in {runs}", hint="name its folder: ftplan run --resume --run-dir DIR", field="resume"
            )
    job = engine.resume_job(newest)
    asked = asked or NodeOptions()
    rendezvous = meeting(asked, os.environ, run_dir=newest.root, run_id=job.run_id, waits=waits)
    says_nothing = rendezvous is None and asked.nodes is None
    return job if says_nothing else job.model_copy(update={"rendezvous": rendezvous})


def _kept_in(folder: Path) -> RunDir | None:
    """The run in ``folder``; where machines have disks of their own, only the first has the run's own job file."""
    if RunDir(folder).job.exists():
        return RunDir(folder)
    own = next(iter(folder.glob("nodes/*/job.json")), None)
    return RunDir(folder, int(own.parent.name)) if own is not None and own.parent.name.isdecimal() else None


def going_on(
    folder: Path | None, asked: NodeOptions, *, waits: bool = True
) -> tuple[RunDir, TrainJob | RunRecord | None]:
    """The run in ``folder``: its job, set to resume, or its record if it is finished; None where it is to begin.

    Of several nodes the first one's folder counts, and the others follow it. Raises InputError where nothing names the
    run's folder.
    """
    rendezvous = meeting(asked, os.environ, run_dir=folder, waits=waits)
    if folder is None:
        if rendezvous is None:
            hint = "--run-dir DIR, the same each time"
            raise InputError("--resume-or-start needs the folder of the run", hint=hint, field="run_dir")
        folder = DEFAULT_RUNS / rendezvous.id
    first = RunDir(folder.absolute())
    state = records.read_state(first)
    record = records.read_record(first)
    if state is not None and state.status == "finished" and record is not None:
        return first, record
    is_first = rendezvous is None or rendezvous.node_rank == 0
    if not is_first or checkpoints.latest_complete(first.checkpoints) is None:
        return first, None
    return first, engine.resume_job(first).model_copy(update={"rendezvous": rendezvous})


def resumed_on(folder: Path | None, gpus: str, asked: NodeOptions | None = None, *, waits: bool = True) -> TrainJob:
    """The job of the run in ``folder`` (or of the newest that can go on), set to resume on the devices ``gpus``.

    The micro-batch is the largest up to the former one that divides what a rank now takes and fits. Raises InputError
    if the global batch does not split over the devices or the configuration cannot run on them, DoesNotFitError if no
    split of the batch fits.
    """
    job = resumed(folder, asked, waits=waits)
    cluster = known_cluster(inventory := parse_inventory(gpus))
    config, estimate = _split(job, cluster)
    return TrainJob.model_validate(
        {
            **job.model_dump(),
            "config": config,
            "inventory": inventory.text,
            "rendezvous": job.rendezvous if len(cluster.nodes) > 1 else None,
            **running.ranks_of(config, cluster),
            **promises.fields(config, estimate, inventory),
        }
    )


def _split(job: TrainJob, cluster: Cluster) -> tuple[RunConfig, Estimate]:
    """The configuration of ``job`` with its batch split over ``cluster``, and its estimate there."""
    model = load_model(job.config.model)
    per_rank = _samples_per_rank(job.global_batch, cluster.world_size)
    sharding = _sharding(job.config.sharding, cluster)
    for micro_batch, accumulation in splits(per_rank, job.config.micro_batch):
        split = {"sharding": sharding, "micro_batch": micro_batch, "accumulation": accumulation}
        config = job.config.model_copy(update=split)
        _check_rules(config, model, cluster)
        estimate = analytic_estimate(config, model, cluster, margin=job.margin, replays=True)
        if estimate.fits:
            return config, estimate
    raise DoesNotFitError(
        f"the run does not fit on {cluster.world_size} of these devices, not even with a micro-batch of 1",
        hint="resume it on more or larger devices",
        field="gpus",
    )


def _samples_per_rank(global_batch: int, ranks: int) -> int:
    """Samples a rank takes in a step; raises InputError with the nearest numbers of devices that split the batch."""
    if global_batch % ranks == 0:
        return global_batch // ranks
    possible = [number for number in range(1, global_batch + 1) if global_batch % number == 0]
    nearest = [*[number for number in possible if number < ranks][-1:], *[n for n in possible if n > ranks][:1]]
    raise InputError(
        f"the run's global batch of {global_batch} does not split evenly over {ranks} devices",
        hint=f"resume on {' or '.join(map(str, nearest))} devices: a step then goes on meaning the same",
        field="gpus",
    )


def _sharding(former: Sharding, cluster: Cluster) -> Sharding:
    """What reads the checkpoints of ``former`` on ``cluster``: those of one kind share their files."""
    if former in ("none", "ddp"):
        return "ddp" if cluster.world_size > 1 else "none"
    if former == "hsdp" and len(cluster.nodes) == 1:
        return "fsdp2"
    return former


def _check_rules(config: RunConfig, model: ModelProfile, cluster: Cluster) -> None:
    for rule in rules.RULES:
        rejection = None if rule in FOR_PLANS else rule(config, model, cluster)
        if rejection is not None:
            raise InputError(f"the run cannot go on there: {rejection.reason}", hint=rejection.hint, field="gpus")
