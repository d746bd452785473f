"""What the machines of a run settle before it trains: that they have one job, on whose disk, and where it goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ftplan.errors import InputError
from ftplan.launcher import checkpoints
from ftplan.launcher.job import TrainJob

if TYPE_CHECKING:
    from trl import SFTConfig

    from ftplan.launcher.train.control import Control

OF_ONE_NODE: Final = {
    "run_id",
    "run_dir",
    "rendezvous",
    "resume",
    "predicted",
    "predicted_ranks",
    "basis",
    "model_flops_per_token",
    "score_flops_per_token",
    "peak_flops_per_second",
    "threads_per_process",
    "cache_dir",
    "data_cache",
}
"""Fields of a job in which machines may differ."""


def settle(job: TrainJob, control: Control, arguments: SFTConfig) -> None:
    """Agree on the job and on the disk, which decides who saves; raises InputError on every rank where they cannot.

    Without a shared disk every machine keeps whole checkpoints of its own: possible where no state is sharded. What a
    killed attempt was still saving is deleted.
    """
    root = Path(job.run_dir)
    if job.nodes > 1:
        _check_same(job, control)
        root.mkdir(parents=True, exist_ok=True)
        control.look_for_shared(root)
    if control.keeps_files:
        # The launch did so, too, but not each restart by torchrun.
        checkpoints.discard_unfinished(job.folder.checkpoints)
    if control.shares_disk:
        return
    if job.config.sharding != "ddp":
        raise InputError(
            f"{root} is not one folder for all machines: each would keep only its own part of a checkpoint",
            hint="put --run-dir on a disk that they share, or use sharding ddp",
            field="run_dir",
        )
    arguments.save_on_each_node = True
    stale = control.leads_node and checkpoints.latest_complete(job.folder.checkpoints) is not None
    if control.any(stale) and not _goes_on(job, control):
        raise InputError(
            f"{root} already holds a run on one of the machines", hint="choose another folder", field="run_dir"
        )


def step_to_go_on_from(job: TrainJob, control: Control) -> int | None:
    """The step of the newest checkpoint that every disk holds complete; None for a run that begins.

    Raises InputError if there is none and the run was to go on, or some disk holds one. An elastic run that torchrun
    has started anew goes on where it can.
    """
    if not _goes_on(job, control):
        return None
    own = [each.step for each in checkpoints.complete(job.folder.checkpoints)] if control.keeps_files else None
    held = [set(steps) for steps in control.gather(own) if steps is not None]
    newest: int | None = max(set.intersection(*held), default=None)
    if newest is None and any(held):
        # From its start the run would save steps that count as older than those there, and are deleted first.
        raise InputError(
            "the machines hold no checkpoint in common",
            hint=f"copy {job.folder.checkpoints} of one machine to the others, or use a shared disk",
            field="resume",
        )
    if newest is None and control.any(job.resume):
        raise InputError(f"no complete checkpoint in {job.folder.checkpoints}", field="resume")
    return newest


def _goes_on(job: TrainJob, control: Control) -> bool:
    return control.any(job.resume or (job.rendezvous is not None and job.rendezvous.is_elastic))


def _check_same(job: TrainJob, control: Control) -> None:
    digest = hashlib.sha256(_shared_fields(job).encode()).hexdigest()
    if len(set(control.gather(digest))) > 1:
        raise InputError(
            "the machines were given different runs",
            hint="give each the same plan file, data and options: ftplan run PLAN.json --data FILE",
            field="nodes",
        )


def _shared_fields(job: TrainJob) -> str:
    """What the machines must have in common; paths may differ, and models, data and tokenizer be elsewhere on each."""
    document = job.model_dump(exclude=OF_ONE_NODE)
    for source in ("model", "tokenizer"):
        if document[source]["kind"] != "hub":
            document[source]["location"] = Path(document[source]["location"]).name
    for data in (document["data"], *document["data"]["described"]):
        data["paths"] = [Path(path).name for path in data["paths"]]
    if job.model.kind != "hub":
        document["config"]["model"] = Path(document["config"]["model"]).name
    return repr(document)
