"""Plans for cards of many sizes, rehearsed on the cards at hand: do they run, and in the memory that was told?

``python -m benchmarks.rehearsals --plan PLANS`` plans each case for parts of a card (``--card``), confirmed by a trace;
``--gpus 2 --plans PLANS --out ROWS.jsonl``, where the cards are, trains those as ``ftplan run --rehearse`` does (random
weights and tokens, no more memory than the planned part of the card) and writes a row each. The cases ``forced`` get
less than their plans need: they have to recover by themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from ftplan.errors import FtplanError
from ftplan.files import write_atomic
from ftplan.launcher import monitor
from ftplan.launcher.events import Event, Stepped
from ftplan.launcher.records import RunDir
from ftplan.results import Plan, to_json, to_jsonable
from ftplan.workflows import confirming, planning, running

GLOBAL_BATCH: Final = 16
SEQ_LEN: Final = 1024


@dataclass(frozen=True)
class Case:
    """A question to the planner; ``share`` of the needed memory is what the rehearsal gets (None: the card).

    It asks for ``ranks`` cards of which each offers ``gigabytes``.
    """

    name: str
    ranks: int
    gigabytes: int
    model: str
    method: str
    seq_len: int = SEQ_LEN
    pins: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None


CASES: Final = (
    Case("1x8-full", 1, 8, "Qwen2.5-0.5B", "full"),
    Case("1x12-lora", 1, 12, "Qwen2.5-1.5B", "lora"),
    Case("1x16-qlora", 1, 16, "Llama-3.1-8B", "qlora"),
    Case("1x24-lora", 1, 24, "Qwen2.5-7B", "lora"),
    Case("1x24-qlora-4k", 1, 24, "Llama-3.1-8B", "qlora", seq_len=4096),
    Case("1x48-full", 1, 48, "Qwen2.5-1.5B", "full"),
    Case("1x80-full", 1, 80, "Llama-3.2-3B", "full"),
    Case("1x16-packed", 1, 16, "Llama-3.2-1B", "lora", seq_len=2048, pins={"packing": True}),
    Case("1x6-qlora", 1, 6, "Qwen2.5-1.5B", "qlora"),
    Case("1x32-lora", 1, 32, "Llama-3.1-8B", "lora"),
    Case("1x10-lora-plain", 1, 10, "Llama-3.2-1B", "lora", pins={"kernels": "none"}),
    Case("1x24-adapter", 1, 24, "Llama-3.2-3B", "llama-adapter"),
    Case("1x40-full-accumulated", 1, 40, "Llama-3.2-1B", "full", pins={"micro_batch": 2}),
    Case("2x12-qlora", 2, 12, "Qwen2.5-7B", "qlora"),
    Case("2x16-lora", 2, 16, "Llama-3.2-3B", "lora"),
    Case("2x24-full", 2, 24, "Qwen2.5-1.5B", "full"),
    Case("2x24-lora-fsdp2", 2, 24, "Qwen2.5-7B", "lora", pins={"sharding": "fsdp2"}),
    Case("2x40-full-zero2", 2, 40, "Qwen2.5-1.5B", "full", pins={"sharding": "zero2"}),
    Case("2x40-full-zero3", 2, 40, "Llama-3.2-3B", "full", pins={"sharding": "zero3"}),
    Case("2x80-full-grad-op", 2, 80, "Llama-3.2-3B", "full", pins={"sharding": "fsdp2-grad-op"}),
    Case("forced", 1, 24, "Qwen2.5-1.5B", "lora", share=0.8),
    Case("forced-2", 2, 24, "Qwen2.5-1.5B", "full", share=0.9),
)


def planned(case: Case, card: str) -> Plan:
    """The plan of ``case`` for parts of ``card``, as ``ftplan run`` confirms it."""
    request = planning.plan_request(
        f"{case.ranks}x{card}:{case.gigabytes}GB",
        model=case.model,
        method=case.method,
        global_batch=GLOBAL_BATCH,
        seq_len=case.seq_len,
        pins=dict(case.pins),
        host_memory="120GB",
    )
    plan, _ = confirming.before_run(planning.plan(request), made_before=False)
    return plan


def rehearsed(case: Case, plan: Plan, folder: Path) -> dict[str, Any]:
    """The row of ``case``: what was planned, what it took, and how it ended."""
    config, told = planning.require_config(plan)
    row = {"case": case.name, "gpus": plan.request.inventory.text, "config": config.model_dump(mode="json")}
    forced = case.share is not None
    lengths = {"max_steps": 9, "save_steps": 2} if forced else {"max_steps": 6}
    settings = running.RunSettings(run_dir=folder / case.name, rehearse=True, hyperparameters=lengths)
    ready = running.ready(plan, settings)
    job = ready.job
    if forced:
        job = job.model_copy(update={"cap_bytes": round(case.share * told.needed_bytes)})
    row |= {"needed_bytes": told.needed_bytes, "capacity_bytes": told.capacity_bytes, "cap_bytes": job.cap_bytes}
    row |= {"estimator": told.estimator, "predicted": to_jsonable(job.predicted)}
    try:
        record = running.launch(job, ready.plan, _ignore)
    except FtplanError as error:
        return {**row, "ok": False, "error": error.message, "log": _tail(RunDir(folder / case.name).log)}
    steps = [event for event in monitor.read_all(RunDir(folder / case.name).metrics) if isinstance(event, Stepped)]
    return {
        **row,
        "ok": record.status == "finished",
        "measured": to_jsonable(record.measured),
        "predicted_last": to_jsonable(record.predicted),
        "recoveries": to_jsonable(record.recoveries) if record.recoveries else [],
        "samples_seen": steps[-1].step * record.global_batch,
        "versions": dict(record.versions),
        "wall_seconds": record.wall_seconds,
    }


def rows(names: Sequence[str], gpus: int, plans: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each case of ``names`` that ``gpus`` cards can do."""
    for case in asked_for(names):
        if case.ranks <= gpus:
            yield rehearsed(case, planning.load_plan(plans / f"{case.name}.json"), folder)


def asked_for(names: Sequence[str]) -> list[Case]:
    """The cases of these names, in this order; all where there are none."""
    by_name = {case.name: case for case in CASES}
    return [by_name[name] for name in names] or list(CASES)


def _ignore(_event: Event) -> None:
    pass


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else ""


def _off(row: Mapping[str, Any], figure: str) -> float | None:
    told, found = row["predicted"][figure], row["measured"][figure]
    return told / found - 1 if told and found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("rehearsals.jsonl"))
    parser.add_argument("--cases", default="", help="names joined by commas; all that the cards can do if left out")
    parser.add_argument("--plan", type=Path, help="folder for the plans: make them, and train nothing")
    parser.add_argument("--plans", type=Path, help="folder that holds them")
    parser.add_argument("--card", default="H200-SXM")
    asked = parser.parse_args()
    names = [name for name in asked.cases.split(",") if name]
    if asked.plan:
        for case in asked_for(names):
            plan = planned(case, asked.card)
            write_atomic(asked.plan / f"{case.name}.json", to_json(plan))
            print(case.name, plan.config.model_dump_json(exclude_defaults=True) if plan.config else None, flush=True)
        return
    done = []
    with asked.out.open("a") as out:
        for row in rows(names, asked.gpus, asked.plans, Path(mkdtemp())):
            out.write(json.dumps(row) + "\n")
            out.flush()
            done.append(row)
            allocated = _off(row, "peak_allocated_bytes") if row["ok"] else None
            process = _off(row, "peak_process_bytes") if row["ok"] else None
            print(row["case"], row["ok"], allocated, process, row.get("error", ""), row.get("log", ""), flush=True)
    off = [abs(each) for row in done if row["ok"] and (each := _off(row, "peak_allocated_bytes")) is not None]
    print(
        json.dumps(
            {"cases": len(done), "ran": sum(row["ok"] for row in done), "worst_allocated": max(off, default=None)}
        )
    )


if __name__ == "__main__":
    main()
