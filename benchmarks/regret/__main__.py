"""How fast today's plans are beside the best that was measured: ``python -m benchmarks.regret``.

For each combination it plans anew and looks up what was measured for that plan, its neighbours and fixed advice
(``benchmarks/data/regret.jsonl``, made by `benchmarks.regret.measure`). Prints a line a combination and a summary as
JSON in the last line.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.regret.combinations import COMBINATIONS, Combination, planned
from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model
from ftplan.results import Plan
from ftplan.spec import RunConfig

DATA = Path(__file__).parents[1] / "data" / "regret.jsonl"
CARDS = {1: "H100", 2: "H200"}
"""Which card a combination with so many GPUs was measured on."""

ADVICE = ("llamafactory example", "advice")


@dataclass(frozen=True)
class Row:
    """One trial that was measured."""

    name: str
    config: RunConfig
    status: str
    tokens_per_second: float | None
    process_bytes: int | None


@dataclass(frozen=True)
class Outcome:
    """What a combination's plan reaches beside the others, in tokens per second; None where it was not measured."""

    combination: Combination
    plan: Plan
    rows: tuple[Row, ...]

    @property
    def planned(self) -> float | None:
        """What today's plan reached."""
        found = [row for row in self.rows if row.config == self.plan.config]
        return max((row.tokens_per_second or 0.0 for row in found), default=None)

    @property
    def best(self) -> float:
        """What the fastest reached."""
        return max(row.tokens_per_second or 0.0 for row in self.rows)

    def named(self, name: str) -> float | None:
        """What the rows reached whose name begins so; 0 where they ran out of memory."""
        found = [row.tokens_per_second or 0.0 for row in self.rows if row.name.startswith(name)]
        return max(found, default=None)

    @property
    def part(self) -> float | None:
        """The plan's speed as a part of the best."""
        return None if self.planned is None else self.planned / self.best

    @property
    def used(self) -> float:
        """The part of the card that the plan needs."""
        assert self.plan.estimate is not None
        return self.plan.estimate.needed_bytes / self.plan.estimate.capacity_bytes


def outcomes(ids: Collection[str] = ()) -> list[Outcome]:
    """Every combination that was measured (of ``ids``, if any are named), planned anew."""
    rows: dict[str, list[Row]] = {}
    for line in DATA.read_text("utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["combination"], []).append(_row(row))
    return [
        Outcome(combination, planned(combination, CARDS[combination.gpus]), tuple(rows[combination.id]))
        for combination in COMBINATIONS
        if combination.id in rows and (not ids or combination.id in ids)
    ]


def _row(row: dict[str, Any]) -> Row:
    told = row["measured"]
    config = RunConfig.model_validate(row["config"])
    return Row(row["name"], config, told["status"], told["tokens_per_second"], told["process_bytes"])


def verdicts(found: Sequence[Outcome]) -> dict[str, int]:
    """Trials by what was said of them, with no margin, and what happened."""
    counts = {"fits and ran": 0, "fits and ran out": 0, "does not and ran": 0, "does not and ran out": 0}
    for outcome in found:
        card = CARDS[outcome.combination.gpus]
        cluster = resolve_inventory(parse_inventory(outcome.combination.inventory(card)))
        for row in outcome.rows:
            if row.status == "failed":
                continue
            told = estimate(row.config, load_model(row.config.model), cluster, replays=True)
            said = "fits" if told.fits else "does not"
            counts[f"{said} and {'ran' if row.status == 'measured' else 'ran out'}"] += 1
    return counts


def main() -> None:
    """Print each combination and the summary."""
    found = outcomes()
    for outcome in found:
        advice = " ".join(f"{name} {_speed(outcome.named(name))}" for name in ADVICE)
        print(
            f"{outcome.combination.id}: plan {_speed(outcome.planned)} best {outcome.best:,.0f} "
            f"part {'not measured' if outcome.part is None else f'{outcome.part:.3f}'} card {outcome.used:.0%} {advice}"
        )
    parts = [outcome.part for outcome in found if outcome.part is not None]
    gains = {
        name: [outcome.planned / reached for outcome in found if outcome.planned and (reached := outcome.named(name))]
        for name in ADVICE
    }
    summary = {
        "benchmark": "regret",
        "rows": [_summed(outcome) for outcome in found],
        "combinations": len(parts),
        "mean_part_of_best": round(fmean(parts), 4),
        "worst_part_of_best": round(min(parts), 4),
        "plans_out_of_memory": sum(outcome.planned == 0 for outcome in found),
        **{f"times_{name.split()[0]}": round(fmean(ratios), 2) for name, ratios in gains.items()},
        "verdicts": verdicts(found),
    }
    print(json.dumps(summary))


def _summed(outcome: Outcome) -> dict[str, Any]:
    asked = outcome.combination
    return {
        "cards": f"{asked.gpus} x {asked.gigabytes} GB",
        "model": asked.model,
        "method": asked.method,
        "plan": outcome.planned,
        "best": outcome.best,
        "card_used": round(outcome.used, 3),
        **{name: outcome.named(name) for name in ADVICE},
    }


def _speed(value: float | None) -> str:
    if value is None:
        return "not measured"
    return "out of memory" if not value else f"{value:,.0f}"


if __name__ == "__main__":
    main()
