"""The measured runs of ``benchmarks/data`` as configurations, so that estimates can stand beside them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.hf_config import profile_from_config
from ftplan.profiles.model_schema import ModelProfile
from ftplan.spec import RunConfig

DATA = Path(__file__).parent / "data"
GPUS = {"NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100-SXM"}


@dataclass(frozen=True)
class MeasuredCase:
    """One rank of one run: what was configured, and the row that was measured."""

    id: str
    rank: int
    config: RunConfig
    model: ModelProfile
    cluster: Cluster
    row: dict[str, Any]

    @property
    def is_single(self) -> bool:
        """Whether one GPU ran it."""
        return self.row["gpus"] == 1

    @property
    def fitted(self) -> bool:
        """Whether constants may be fitted on it; the others only test them."""
        return zlib.crc32(self.id.encode()) % 2 == 0

    @property
    def label(self) -> str:
        """Id, card and rank."""
        return f"{self.id} {self.row['gpu'].removeprefix('NVIDIA ')} r{self.rank}"


def known_cases() -> tuple[MeasuredCase, ...]:
    """Every row of known.jsonl."""
    return tuple(_case(row) for row in _rows("known.jsonl"))


def unseen_cases() -> tuple[MeasuredCase, ...]:
    """Every row of unseen.jsonl: features and models that were predicted before they were measured."""
    return tuple(_case(row) for row in _rows("unseen.jsonl"))


def capped_cases() -> tuple[MeasuredCase, ...]:
    """Every row of capped.jsonl; ``row["case"]["cap_gib"]`` is the cap."""
    return tuple(_case(row) for row in _rows("capped.jsonl"))


def spread_cases() -> tuple[MeasuredCase, ...]:
    """Every row of spread.jsonl: sizes, sequences up to 32k, offload."""
    return tuple(_case(row) for row in _rows("spread.jsonl"))


def host_cases() -> tuple[MeasuredCase, ...]:
    """Every row of host.jsonl: runs, most with offload, in processes of their own whose resident memory was watched."""
    return tuple(_case(row) for row in _rows("host.jsonl"))


def sharded_limit_cases() -> tuple[MeasuredCase, ...]:
    """Every capped row of sharded_limits.jsonl: FSDP2 on two H200, a row a rank."""
    return tuple(_case(row) for row in _rows("sharded_limits.jsonl") if row["case"]["cap_gib"] is not None)


def alone_cases() -> tuple[MeasuredCase, ...]:
    """Every row of alone.jsonl: runs with and without a cap, each in a process of its own, as a user's is."""
    return tuple(_case(row) for row in _rows("alone.jsonl"))


def limit_cases() -> tuple[MeasuredCase, ...]:
    """Every capped run: those of capped.jsonl and alone.jsonl that have a cap, and limits.jsonl."""
    files = ("capped.jsonl", "limits.jsonl", "alone.jsonl")
    rows = [row for name in files for row in _rows(name) if row["case"].get("cap_gib") is not None]
    return tuple(_case(row) for row in rows)


def engine_cases() -> tuple[MeasuredCase, ...]:
    """Every run of our own engine in engine.jsonl."""
    return tuple(_engine_case(row) for row in _rows("engine.jsonl"))


def worst_ranks(cases: Iterable[MeasuredCase]) -> list[MeasuredCase]:
    """Of every run the rank whose process took most: what an estimate of several ranks tells."""
    worst: dict[tuple[str, str, RunConfig], MeasuredCase] = {}
    for case in cases:
        before = worst.setdefault((case.id, case.row["gpu"], case.config), case)
        if _used(case) > _used(before):
            worst[case.id, case.row["gpu"], case.config] = case
    return list(worst.values())


def _used(case: MeasuredCase) -> int:
    used: int = case.row.get("device_used_end") or case.row["device_used"]
    return used - (case.row.get("base_alloc") or 0)


def _engine_case(row: dict[str, Any]) -> MeasuredCase:
    gpus = parse_inventory(f"{row['gpus']}x{GPUS[row['gpu']]}")
    model = _model(row["config"]["model"])
    return MeasuredCase(row["id"], 0, RunConfig(**row["config"]), model, resolve_inventory(gpus), row)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines() if line.strip()]


def _case(row: dict[str, Any]) -> MeasuredCase:
    gpus = parse_inventory(f"{row['gpus']}x{GPUS[row['gpu']]}")
    config = run_config(row["case"], expandable_segments=row["expandable_segments"])
    return MeasuredCase(row["id"], row["rank"], config, _model(row["case"]["model"]), resolve_inventory(gpus), row)


def run_config(case: dict[str, Any], *, expandable_segments: bool) -> RunConfig:
    """The configuration that the measuring program ran for ``case``; fields it may lack came with later programs."""
    offload = "none"
    if case["offload"]:
        offload = "optimizer" if case["parallel"] in ("zero1", "zero2") else "optimizer+params"
    return RunConfig(
        model=case["model"],
        method=case["method"],
        lora_rank=case["rank"],
        lora_alpha=case["alpha"],
        lora_targets=case["targets"],
        lora_dropout=case["dropout"],
        adapter_dtype="fp32" if case["adapter_fp32"] else case["weights"],
        prepare_kbit=case["kbit_prepare"],
        weights_dtype=case["weights"],
        precision=case["amp"],
        optimizer=case["optim"],
        gradient_checkpointing=case["ckpt"],
        seq_len=case["seq"],
        micro_batch=case["micro"],
        accumulation=case["accum"],
        padding=case["pad"],
        attention=case["attn"],
        kernels="liger" if case["liger"] else "none",
        packing=case.get("packing", False),
        sharding=case["parallel"],
        offload=offload,
        sync_each_batch=case.get("sync_each_batch", False),
        stack="trl" if case.get("trl") else "trainer",
        loss_path="chunked" if case.get("trl") else "liger" if case["liger"] else "full",
        expandable_segments=expandable_segments,
    )


@cache
def _model(name: str) -> ModelProfile:
    models = json.loads((DATA / "measured_models.json").read_text("utf-8"))
    return profile_from_config(models[name], id=name, source="benchmarks/data/measured_models.json")
