"""Folders of runs as they are left: with events that were told, and no training behind them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ftplan.files import write_atomic
from ftplan.launcher import checkpoints, records
from ftplan.launcher.events import Event, RankMemory, Saved, Started, Stepped, to_line
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.launcher.records import RunDir, Status
from ftplan.results import Measured
from ftplan.spec import RunConfig

MIB = 2**20
PREDICTED = Measured(None, None, 600 * MIB, 1200 * MIB, 0.25, 4096.0)
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "trl": "1.16.0"}


def memory(step: int) -> tuple[RankMemory, ...]:
    """Of two ranks, growing for a while."""
    grown = min(step, 10) * MIB
    return tuple(RankMemory(rank, None, None, 500 * MIB + grown - rank, 500 * MIB + grown - rank) for rank in (0, 1))


def started(world_size: int = 2, resumed_from_step: int | None = None, **versions: str) -> Started:
    return Started(60, world_size, 16, 178, 1_210_000, 156_000, (1, 2), resumed_from_step, VERSIONS | versions)


def stepped(step: int, loss: float | None = None) -> Stepped:
    loss = 7.5 / (1 + step / 20) + (step % 3) / 20 if loss is None else loss
    return Stepped(step, 60, step / 12, loss, 5e-3 * (1 - step / 60), 1 + step % 5, 0.3, 2000.0 + step, memory(step))


def run_folder(root: Path, events: Iterable[Event], status: Status | None, saved: Iterable[int] = ()) -> RunDir:
    """A run in ``root`` whose workers told ``events`` and left checkpoints of the steps ``saved``."""
    run = RunDir(root)
    job = TrainJob(
        run_id="20250131-120000-3f2a",
        run_dir=str(root),
        config=RunConfig(model="demo-model", seq_len=128, micro_batch=4, accumulation=2, sharding="ddp"),
        inventory="2xcpu:4GB",
        global_batch=16,
        world_size=2,
        nproc_per_node=2,
        device="cpu",
        model=Source(kind="config", location="demo/model"),
        tokenizer=Source(kind="folder", location="demo/model"),
        data=DataSource(paths=("data/train.jsonl",)),
        max_steps=60,
        predicted=PREDICTED,
    )
    write_atomic(run.job, job.model_dump_json())
    run.metrics.write_bytes(b"".join(map(to_line, events)))
    if status is not None:
        records.write_state(run, status, 1)
    for step in saved:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
        checkpoints.seal(folder, step=step, world_size=2, global_batch=16)
    return run


def save(step: int) -> Saved:
    return Saved(step, f"checkpoints/checkpoint-{step}", 0.5)
