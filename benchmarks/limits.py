"""What is said of runs whose card was capped near the limit: ``python -m benchmarks.limits`` (a minute).

A cap bounds what the allocator may reserve, so the bytes needed of it stand beside the cap. Prints every wrong verdict
and a summary as JSON in the last line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from statistics import fmean

from benchmarks.measured_cases import MeasuredCase, limit_cases
from ftplan.estimators.tape.replaying import replayed
from ftplan.estimators.workload import Workload
from ftplan.spec import RunConfig
from ftplan.units import GIB


def cap_bytes(case: MeasuredCase) -> int:
    """The cap of a run."""
    return int(case.row["case"]["cap_gib"] * GIB)


def needed_of_cap(case: MeasuredCase) -> float:
    """Bytes that the allocator is said to need over the cap: at most 1 if the run is said to fit."""
    cap = cap_bytes(case)
    _, needed = replayed(Workload(case.config, case.model, case.cluster), case.cluster.gpus[0], cap)
    return needed / cap


def summary(shares: Iterable[tuple[MeasuredCase, float]]) -> dict[str, int]:
    """Counts of verdicts; ``within`` are false rejects that a card 5 % larger would not be."""
    counts = {"runs": 0, "false_fits": 0, "false_rejects": 0, "false_rejects_within_5_percent": 0, "survived": 0}
    for case, share in shares:
        counts["runs"] += 1
        counts["survived"] += case.row["ok"]
        counts["false_fits"] += share <= 1 and not case.row["ok"]
        counts["false_rejects"] += share > 1 and case.row["ok"]
        counts["false_rejects_within_5_percent"] += 1 < share <= 1.05 and case.row["ok"]
    return counts


def usable(shares: Iterable[tuple[MeasuredCase, float]]) -> dict[str, float]:
    """Of each configuration the smallest card on which it ran over the smallest on which it is said to fit.

    ``configurations`` counts those that ran under some cap, ``rejected_5_percent_above`` those that are rejected even
    on a card 5 % larger than the smallest on which they ran.
    """
    least: dict[tuple[RunConfig, str], tuple[int, float]] = {}
    for case, share in shares:
        key = case.config, case.row["gpu"]
        cap = cap_bytes(case)
        if case.row["ok"] and cap < least.get(key, (cap + 1, 0.0))[0]:
            least[key] = cap, share
    found = [1 / max(1.0, share) for _, share in least.values()]
    return {
        "configurations": len(found),
        "rejected_5_percent_above": sum(share > 1.05 for _, share in least.values()),
        "usable_percent_mean": round(100 * fmean(found), 2),
        "usable_percent_worst": round(100 * min(found), 2),
    }


def main() -> None:
    """Print the comparison."""
    shares = []
    for case in limit_cases():
        share = needed_of_cap(case)
        shares.append((case, share))
        if (share <= 1) != case.row["ok"]:
            print(f"{'false fit' if share <= 1 else 'false reject':12} {case.label:44} needs {share:.3f} of the cap")
    print(json.dumps({"benchmark": "limits", **summary(shares), **usable(shares)}))


if __name__ == "__main__":
    main()
