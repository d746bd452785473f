"""Plans for cards of many sizes, rehearsed on the cards at hand: do they run, and in the memory that was told?

``python -m benchmarks.rehearsals --gpus 2 --out ROWS.jsonl`` plans each case for its cards, trains it as ``ftplan run
--rehearse`` does (random weights and tokens, no more memory than the planned card offers), and writes a row each. The
cases ``forced`` get less than their plans need: they have to recover by themselves. ``--list`` only plans.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from ftplan.errors import FtplanError
from ftplan.launcher import monitor
from ftplan.launcher.events import Event, Stepped
from ftplan.launcher.records import RunDir
from ftplan.results import Plan, to_jsonable
from ftplan.workflows import confirming, planning, running

GLOBAL_BATCH: Final = 16
SEQ_LEN: Final = 1024


@dataclass(frozen=True)
class Case:
    """A question to the planner; ``share`` of the needed memory is what the rehearsal gets (None: the card)."""

    name: str
    gpus: str
    model: str
    method: str
    seq_len: int = SEQ_LEN
    pins: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None

    @property
    def ranks(self) -> int:
        """Cards that it needs."""
        return int(self.gpus.split("x")[0])


CASES: Final = (
    Case("1x8-full", "1x8GB", "Qwen2.5-0.5B", "full"),
    Case("1x12-lora", "1x12GB", "Qwen2.5-1.5B", "lora"),
    Case("1x16-qlora", "1x16GB", "Llama-3.1-8B", "qlora"),
    Case("1x24-lora", "1x24GB", "Qwen2.5-7B", "lora"),
    Case("1x24-qlora-4k", "1x24GB", "Llama-3.1-8B", "qlora", seq_len=4096),
    Case("1x48-full", "1x48GB", "Qwen2.5-1.5B", "full"),
    Case("1x80-full", "1x80GB", "Llama-3.2-3B", "full"),
    Case("1x16-packed", "1x16GB", "Llama-3.2-1B", "lora", seq_len=2048, pins={"packing": True}),
    Case("2x12-qlora", "2x12GB", "Qwen2.5-7B", "qlora"),
    Case("2x16-lora", "2x16GB", "Llama-3.2-3B", "lora"),
    Case("2x24-full", "2x24GB", "Qwen2.5-1.5B", "full"),
    Case("2x24-lora-fsdp2", "2x24GB", "Qwen2.5-7B", "lora", pins={"sharding": "fsdp2"}),
    Case("2x40-full-zero2", "2x40GB", "Qwen2.5-1.5B", "full", pins={"sharding": "zero2"}),
    Case("2x40-full-zero3", "2x40GB", "Llama-3.2-3B", "full", pins={"sharding": "zero3"}),
    Case("2x80-full-grad-op", "2x80GB", "Llama-3.2-3B", "full", pins={"sharding": "fsdp2-grad-op"}),
    Case("forced", "1x24GB", "Qwen2.5-1.5B", "lora", share=0.8),
    Case("forced-2", "2x24GB", "Qwen2.5-1.5B", "full", share=0.9),
)


def planned(case: Case) -> Plan:
    """The plan of ``case``, as ``ftplan run`` confirms it."""
    request = planning.plan_request(
        case.gpus,
        model=case.model,
        method=case.method,
        global_batch=GLOBAL_BATCH,
        seq_len=case.seq_len,
        pins=dict(case.pins),
        host_memory="120GB",
    )
    plan, _ = confirming.before_run(planning.plan(request), made_before=False)
    return plan


def rehearsed(case: Case, folder: Path) -> dict[str, Any]:
    """The row of ``case``: what was planned, what it took, and how it ended."""
    started = time.monotonic()
    plan = planned(case)
    config, told = planning.require_config(plan)
    row = {"case": case.name, "gpus": case.gpus, "config": config.model_dump(mode="json")}
    forced = case.share is not None
    lengths = {"max_steps": 9, "save_steps": 2} if forced else {}
    settings = running.RunSettings(run_dir=folder / case.name, rehearse=True, hyperparameters=lengths)
    ready = running.ready(plan, settings)
    job = ready.job
    if forced:
        job = job.model_copy(update={"cap_bytes": round(case.share * told.needed_bytes)})
    row |= {"needed_bytes": told.needed_bytes, "capacity_bytes": told.capacity_bytes, "cap_bytes": job.cap_bytes}
    row |= {"planned_in": time.monotonic() - started, "predicted": to_jsonable(job.predicted)}
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


def rows(names: frozenset[str], gpus: int, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each case that ``gpus`` cards can do."""
    for case in CASES:
        if case.ranks <= gpus and (not names or case.name in names):
            yield rehearsed(case, folder)


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
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    if asked.list:
        for case in CASES:
            plan = planned(case)
            print(case.name, plan.config.model_dump_json(exclude_defaults=True) if plan.config else None, flush=True)
        return
    done = []
    with asked.out.open("a") as out:
        for row in rows(frozenset(filter(None, asked.cases.split(","))), asked.gpus, Path(mkdtemp())):
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
