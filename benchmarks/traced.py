"""The trace estimator beside measured runs: ``python -m benchmarks.traced [ID …]``.

Prints a line a run with signed errors, the capped runs that were told wrong, and the summary as JSON. The runs of
unseen.jsonl were predicted before they were measured (predicted.jsonl holds those predictions); the others are known.
Needs the ``train`` extra; Liger's runs need liger-kernel and triton, ZeRO's need deepspeed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any

from benchmarks.measured_cases import (
    DATA,
    MeasuredCase,
    capped_cases,
    engine_cases,
    known_cases,
    run_config,
    unseen_cases,
    worst_ranks,
)
from ftplan.estimators.trace.digest import Digest
from ftplan.estimators.trace.running import traced
from ftplan.estimators.trace.settings import TraceSettings, worst_rank
from ftplan.profiles.stacks import load_stack
from ftplan.results import Phase
from ftplan.units import GIB

TRAINING = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
WITHOUT_CUDNN = (9, 1)
"""A card like the measured one where cuDNN's attention is not preferred, as the runs that switched it off."""


def settings(case: MeasuredCase) -> TraceSettings:
    """What the measuring program ran: weights made on the device, peaks counted from the first step."""
    row = case.row.get("case", {})
    world = case.row["gpus"]
    return TraceSettings(
        config=case.config.model_copy(update={"model": "measured"}),
        model=measured_models()[case.config.model],
        stack=load_stack(case.config.stack),
        world_size=world,
        rank=case.rank,
        ranks_per_node=world // 2 if case.config.sharding == "hsdp" else world,
        capability=WITHOUT_CUDNN if row.get("flash") else (9, 0),
        load="built",
        evaluates=bool(row.get("eval")),
    )


@cache
def measured_models() -> dict[str, Any]:
    """The configs of the measured models."""
    found: dict[str, Any] = json.loads((DATA / "measured_models.json").read_text("utf-8"))
    return found


def errors(case: MeasuredCase) -> dict[str, float]:
    """Predicted over measured less one: allocated and reserved in training, allocated in evaluation."""
    told = traced(settings(case))
    row, before = case.row, case.row.get("base_alloc") or 0
    found = {
        "allocated": _highest(told, "allocated_bytes") / (row.get("train_peak_alloc", row["peak_alloc"]) - before) - 1,
        "reserved": _highest(told, "reserved_bytes") / (row.get("train_peak_reserved", row["peak_reserved"]) - before)
        - 1,
    }
    if row.get("eval_peak_alloc"):
        found["evaluation"] = told.phases[Phase.EVAL].allocated_bytes / row["eval_peak_alloc"] - 1
    return found


def engine_errors(case: MeasuredCase) -> dict[str, float]:
    """The same for a run of our own engine, which loads weights from disk and counts loading too."""
    rank = worst_rank(case.config, case.row["gpus"])
    told = traced(replace(settings(case), rank=rank, load="pretrained", evaluates=False))
    measured = case.row["measured"]
    peaks = [peak for phase, peak in told.phases.items() if phase not in (Phase.EVAL, Phase.SAVE)]
    return {
        "allocated": max(peak.allocated_bytes for peak in peaks) / measured["peak_allocated_bytes"] - 1,
        "reserved": max(peak.reserved_bytes for peak in peaks) / measured["peak_reserved_bytes"] - 1,
    }


def _highest(told: Digest, figure: str) -> int:
    return max(int(getattr(peak, figure)) for phase, peak in told.phases.items() if phase in TRAINING)


def capped_mistakes() -> list[str]:
    """The capped runs whose end was told wrong, as ``false fit`` or ``false reject``."""
    mistakes = []
    for case in capped_cases():
        row = dict(case.row["case"])
        cap = int(row.pop("cap_gib") * GIB)
        config = run_config(row, expandable_segments=case.row["expandable_segments"])
        told = traced(settings(replace(case, config=config)))
        fits = told.needed_bytes <= cap
        if fits != case.row["ok"]:
            mistakes.append(f"{'false fit' if fits else 'false reject'}: {case.label}")
    return mistakes


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean absolute, mean signed and worst error of each figure, in percent."""
    found = {}
    for name in ("allocated", "reserved", "evaluation"):
        values = [100 * row[name] for row in rows if name in row]
        if values:
            found[name] = {
                "mean_abs_percent": round(fmean(map(abs, values)), 3),
                "mean_signed_percent": round(fmean(values), 3),
                "worst_percent": round(max(values, key=abs), 3),
                "cases": len(values),
            }
    return found


def main(wanted: list[str]) -> None:
    """Print the comparison."""
    by_part: dict[str, list[dict[str, float]]] = {}
    for part, cases in {"known": known_cases(), "unseen": unseen_cases()}.items():
        for case in worst_ranks(cases):
            if wanted and case.id not in wanted:
                continue
            found = errors(case)
            kind = "one GPU" if case.is_single else "several GPUs"
            by_part.setdefault(f"{part}, {kind}", []).append(found)
            print(f"{case.label:38} " + "  ".join(f"{name} {100 * value:+7.3f}%" for name, value in found.items()))
    for case in engine_cases():
        if not wanted or case.id in wanted:
            found = engine_errors(case)
            by_part.setdefault("own engine, one and two GPUs", []).append(found)
            print(f"{case.label:38} " + "  ".join(f"{name} {100 * value:+7.3f}%" for name, value in found.items()))
    result: dict[str, Any] = {part: summary(rows) for part, rows in by_part.items()}
    if not wanted:
        result["capped"] = {"runs": len(capped_cases()), "mistakes": capped_mistakes()}
    print(json.dumps({"benchmark": "traced", "errors": result}))


if __name__ == "__main__":
    main(sys.argv[1:])
