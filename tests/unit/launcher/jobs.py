"""Jobs for tests: small ones, with fixed names, so that what is made of them can be compared as text."""

from __future__ import annotations

from typing import Any

from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.spec import RunConfig


def make_config(**changes: Any) -> RunConfig:
    return RunConfig(**({"model": "demo/model", "seq_len": 128, "micro_batch": 4, "accumulation": 2} | changes))


def make_job(config: RunConfig | None = None, **changes: Any) -> TrainJob:
    given: dict[str, Any] = {
        "run_id": "20250131-120000-3f2a",
        "run_dir": "runs/20250131-120000-3f2a",
        "config": config or make_config(sharding="ddp"),
        "inventory": "2xcpu:4GB",
        "global_batch": 16,
        "world_size": 2,
        "nproc_per_node": 2,
        "device": "cpu",
        "model": Source(kind="config", location="demo/model"),
        "tokenizer": Source(kind="folder", location="demo/model"),
        "data": DataSource(paths=("data/train.jsonl",)),
        "max_steps": 60,
    }
    return TrainJob(**(given | changes))
