"""Estimates beside measured runs, case by case: ``python -m benchmarks.accuracy``.

Prints a line a case with signed errors, then mean absolute, mean signed and worst errors of each figure for the cases
that constants were fitted on and for those that only test them, and for runs measured later, on which no constant of
memory was fitted; the last line is the summary as JSON.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from benchmarks.measured_cases import (
    MeasuredCase,
    engine_cases,
    host_cases,
    known_cases,
    spread_cases,
    unseen_cases,
    worst_ranks,
)
from ftplan.estimators.analytic import estimate
from ftplan.results import Estimate, Phase, Timeline
from ftplan.units import GIB


def _host_in_training(predicted: Estimate) -> float:
    """Host RAM after loading: the measured runs made their weights on the device."""
    by_phase = Timeline(predicted.host.terms).by_phase
    return max(size for phase, size in by_phase.items() if phase not in (Phase.LOAD, Phase.SAVE))


FIGURES: dict[str, tuple[Callable[[Estimate], float], Callable[[MeasuredCase], float]]] = {
    "allocated": (lambda e: e.peak_allocated_bytes, lambda c: c.row["peak_alloc"]),
    "reserved": (lambda e: e.peak_reserved_bytes, lambda c: c.row["peak_reserved"]),
    "process": (lambda e: e.process_bytes, lambda c: c.row["device_used_end"]),
    "host": (_host_in_training, lambda c: c.row["host_peak_kib"] * 1024 * c.row["gpus"]),
    "step": (lambda e: e.step_seconds, lambda c: c.row["step_s"]),
}


def signed_errors(case: MeasuredCase) -> dict[str, float]:
    """Predicted over measured less one, for each figure."""
    predicted = estimate(case.config, case.model, case.cluster, replays=True)
    return {name: of(predicted) / truth(case) - 1 for name, (of, truth) in FIGURES.items()}


def host_error(case: MeasuredCase) -> float:
    """The signed error of host RAM alone."""
    of, truth = FIGURES["host"]
    return of(estimate(case.config, case.model, case.cluster)) / truth(case) - 1


ENGINE_FIGURES = {
    "allocated": "peak_allocated_bytes",
    "reserved": "peak_reserved_bytes",
    "process": "peak_process_bytes",
    "host": "host_bytes",
    "step": "step_seconds",
}


def engine_errors(case: MeasuredCase) -> dict[str, float]:
    """The same for a run of our own engine.

    It loads its weights on the host, as a user's run does, so that host RAM counts that phase too. Its single-card runs
    that still had a process group are left out of the process figure: since then it starts a single card without one.
    """
    predicted = estimate(case.config, case.model, case.cluster, replays=True)
    measured = case.row["measured"]
    errors = {name: of(predicted) / measured[ENGINE_FIGURES[name]] - 1 for name, (of, _) in FIGURES.items()}
    errors["host"] = predicted.host_bytes / measured["host_bytes"] - 1
    if case.row["process_group"] and case.is_single:
        del errors["process"]
    return errors


def later_errors(case: MeasuredCase) -> dict[str, float]:
    """The same for runs measured later, some of them in a process that held memory before: that is subtracted."""
    predicted = estimate(case.config, case.model, case.cluster, replays=True)
    row = case.row
    before = row.get("base_alloc", 0)
    used = row.get("device_used_end") or row["device_used"]
    errors = {
        "allocated": predicted.peak_allocated_bytes / (row.get("train_peak_alloc", row["peak_alloc"]) - before) - 1,
        "reserved": predicted.peak_reserved_bytes / (row.get("train_peak_reserved", row["peak_reserved"]) - before) - 1,
        "process": predicted.process_bytes / (used - before) - 1,
        "step": predicted.step_seconds / row["step_s"] - 1,
    }
    if case.config.offload != "none" and "threads" in row:  # a plain Trainer's ranks have one
        del errors["step"]
    return errors


def later_cases() -> list[MeasuredCase]:
    """Runs measured after the constants were fitted, the worst rank of each; no plan makes FSDP2 on one card."""
    cases = spread_cases() + unseen_cases() + host_cases()
    return [case for case in worst_ranks(cases) if not (case.is_single and case.config.sharding == "fsdp2")]


def offload_cases() -> list[MeasuredCase]:
    """Every run with offload, one row a run; those of host.jsonl on one card gave the model of host RAM."""
    cases = known_cases() + unseen_cases() + spread_cases() + host_cases()
    return [case for case in cases if case.config.offload != "none" and case.rank == 0]


def summary(errors: Iterable[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean absolute, mean signed and worst error of each figure, in percent."""
    rows = list(errors)
    told = [name for name in FIGURES if any(name in row for row in rows)]
    return {name: _stats([row[name] for row in rows if name in row]) for name in told}


def _stats(values: list[float]) -> dict[str, float]:
    worst = max(values, key=abs)
    return {
        "mean_abs_percent": round(100 * fmean(abs(value) for value in values), 3),
        "mean_signed_percent": round(100 * fmean(values), 3),
        "worst_percent": round(100 * worst, 3),
        "cases": len(values),
    }


def _told(case: MeasuredCase, errors: Mapping[str, float], allocated: int) -> str:
    """A case in one line; ``allocated`` is what was measured."""
    figures = "  ".join(f"{100 * errors[name]:+8.2f}%" if name in errors else f"{'-':>9}" for name in FIGURES)
    return f"{case.label:38} {allocated / GIB:9.3f} {allocated * (1 + errors['allocated']) / GIB:9.3f}  {figures}"


def step_rankings() -> dict[str, float]:
    """Kendall's tau of predicted and measured step times over all single-card, and over all two-card runs, by half.

    Over known, unseen and spread.jsonl, whose fitted half gave the constants.
    """
    steps: dict[str, list[tuple[float, float]]] = {}
    for case in known_cases() + unseen_cases() + spread_cases():
        if case.rank == 0 and case.row["step_s"]:
            part = f"{'single' if case.is_single else 'several'}, {'fitted' if case.fitted else 'held out'}"
            told = estimate(case.config, case.model, case.cluster).step_seconds
            steps.setdefault(part, []).append((told, case.row["step_s"]))
    return {part: round(kendall_tau(pairs), 3) for part, pairs in sorted(steps.items())}


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Of all pairs of items, the part that both figures order alike less the part that they order otherwise."""
    orders = [
        math.copysign(1, (one[0] - other[0]) * (one[1] - other[1])) for one, other in itertools.combinations(pairs, 2)
    ]
    return fmean(orders)


def main() -> None:
    """Print the comparison."""
    print(f"{'case':38} {'measured':>9} {'predicted':>9}  " + "  ".join(f"{name:>9}" for name in FIGURES))
    by_part: dict[str, list[dict[str, float]]] = {}
    for case in worst_ranks(known_cases()):
        errors = signed_errors(case)
        kind = "single" if case.is_single else "several"
        by_part.setdefault(f"{kind}, {'fitted' if case.fitted else 'held out'}", []).append(errors)
        by_part.setdefault(kind, []).append(errors)
        print(_told(case, errors, case.row["peak_alloc"]))
    for case in later_cases():
        kind = "single" if case.is_single else "several"
        by_part.setdefault(f"{kind}, later", []).append(later_errors(case))
    for case in offload_cases():
        by_part.setdefault("offload", []).append({"host": host_error(case)})
    for case in engine_cases():
        errors = engine_errors(case)
        by_part.setdefault("own engine", []).append(errors)
        print(_told(case, errors, case.row["measured"]["peak_allocated_bytes"]))
    result = {part: summary(rows) for part, rows in sorted(by_part.items())}
    for part, stats in result.items():
        line = ", ".join(
            f"{name} {s['mean_abs_percent']:.2f} % (worst {s['worst_percent']:+.2f})" for name, s in stats.items()
        )
        print(f"{part}: {line}")
    rankings = step_rankings()
    print("ranking of step times (Kendall's tau): " + ", ".join(f"{part} {tau:.2f}" for part, tau in rankings.items()))
    print(json.dumps({"benchmark": "accuracy", "errors": result, "step_rankings": rankings}))


if __name__ == "__main__":
    main()
