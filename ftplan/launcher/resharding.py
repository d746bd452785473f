"""A checkpoint of DeepSpeed for another number of processes.

ZeRO writes a file for each rank and reads them back on as many ranks only. DeepSpeed's universal form holds one file a
parameter and state, from which any number of ranks takes its parts. It is made before the processes start, beside the
checkpoint, which is left as it is.

FSDP2 needs none of this: torch's distributed checkpoints are spread over any number of ranks while they are read.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from ftplan.errors import RunFailedError
from ftplan.launcher import artifacts, checkpoints
from ftplan.launcher.checkpoints import Checkpoint
from ftplan.launcher.job import TrainJob
from ftplan.launcher.process import Child
from ftplan.launcher.records import RunDir
from ftplan.spec import Sharding

PREFIX: Final = "universal-"
BESIDE_WEIGHTS: Final = ("trainer_state.json", "scheduler.pt", "rng_state*.pth")
"""What the trainer reads of a checkpoint that is not DeepSpeed's."""
POLL_SECONDS: Final = 0.2


def form(sharding: Sharding) -> str:
    """What reads the weights and optimizer states of a checkpoint: runs of one form can go on from each other."""
    if sharding in artifacts.ZERO_STAGES:
        return sharding
    return "fsdp2" if sharding in ("fsdp2", "fsdp2-grad-op", "hsdp") else "ddp"


def is_needed(checkpoint: Checkpoint, job: TrainJob) -> bool:
    """Whether ``job`` cannot read ``checkpoint`` as it is."""
    return checkpoint.world_size != job.world_size and job.config.sharding in artifacts.ZERO_STAGES


def universal(run: RunDir, checkpoint: Checkpoint, python: str) -> Path:
    """The folder with ``checkpoint`` in universal form: there already, or converted now by ``python``.

    The folder appears when it is complete. Raises RunFailedError if the conversion fails.
    """
    folder = run.checkpoints / f"{PREFIX}{checkpoint.step}"
    discard(run, keep=folder)
    if checkpoints.read(folder) is not None:
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    try:
        _fill(partial, checkpoint, run.log, python)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)
    return folder


def discard(run: RunDir, keep: Path | None = None) -> None:
    """Delete converted checkpoints but ``keep``, half of one too: once the run has saved its own, nobody reads them."""
    for pattern in (f"{PREFIX}*", f".{PREFIX}*.partial"):
        for folder in run.checkpoints.glob(pattern):
            if folder != keep:
                shutil.rmtree(folder)


def _fill(folder: Path, checkpoint: Checkpoint, log: Path, python: str) -> None:
    """Put ``checkpoint`` in universal form into ``folder``."""
    _convert(checkpoint.path, folder, log, python)
    for pattern in BESIDE_WEIGHTS:
        for file in checkpoint.path.glob(pattern):
            shutil.copy2(file, folder)
    checkpoints.seal(
        folder, step=checkpoint.step, world_size=checkpoint.world_size, global_batch=checkpoint.global_batch
    )


def _convert(source: Path, target: Path, log: Path, python: str) -> None:
    shards = (source / "latest").read_text(encoding="utf-8").strip()
    command = [python, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source / shards), "--output_folder", str(target / shards)]
    # One rank's states at a time are in memory. The trainer's checkpoints lack a description that DeepSpeed wants for
    # tensor parallelism alone: an empty one is put in its place.
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    with Child(command, {"CUDA_VISIBLE_DEVICES": ""}, log) as child:
        while (outcome := child.wait(POLL_SECONDS)) is None:
            pass
    if not outcome.ok:
        raise RunFailedError(
            f"DeepSpeed could not convert {source} for another number of processes",
            hint=f"resume on as many devices as saved it; log: {log}",
        )
