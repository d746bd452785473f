"""Plans for parts of a card that were rehearsed on it, and LLaMA-Factory beside our engine: what the runs showed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
ROWS = [json.loads(line) for line in (DATA / "rehearsals.jsonl").read_text().splitlines()]
RAN = [row for row in ROWS if "superseded" not in row]
FORCED = [row for row in RAN if row["recoveries"]]
AS_PLANNED = [row for row in RAN if not row["recoveries"]]
SIDE = [json.loads(line) for line in (DATA / "side_by_side.jsonl").read_text().splitlines()][-1]["cases"]


def named(row):
    return f"{row['case']} on {row['card']}"


@pytest.fixture(scope="module")
def off():
    """How far the allocated peak that is told today lies from the measured one, for each run on the card it ran on."""
    found = {}
    for row in AS_PLANNED:
        card = row["card"].removeprefix("2x")
        ranks = 1 if row["config"]["sharding"] == "none" else 2
        config = RunConfig.model_validate(row["config"])
        cluster = resolve_inventory(parse_inventory(f"{ranks}x{card}"))
        told = estimate(config, load_model(config.model), cluster, replays=True)
        found[named(row)] = told.peak_allocated_bytes / row["measured"]["peak_allocated_bytes"] - 1
    return found


def test_every_plan_ran_in_what_its_card_offers():
    assert len(AS_PLANNED) >= 11
    assert all(row["ok"] for row in RAN)
    assert all(row["measured"]["peak_process_bytes"] <= row["capacity_bytes"] for row in AS_PLANNED)


@pytest.mark.parametrize("row", AS_PLANNED, ids=named)
def test_its_peak_is_told_within_two_percent(row, off):
    assert off[named(row)] == pytest.approx(0, abs=0.02)


def test_in_the_mean_it_is_told_within_half_a_percent(off):
    assert mean(map(abs, off.values())) < 0.005


def test_a_run_with_too_little_memory_recovered_and_saw_every_sample():
    (row,) = FORCED
    assert row["cap_bytes"] < row["needed_bytes"]
    assert [each["kind"] for each in row["recoveries"]] == ["out_of_memory"]
    assert row["measured"]["peak_process_bytes"] <= 1.02 * row["cap_bytes"]
    assert row["samples_seen"] == 9 * 16


@pytest.mark.parametrize("case", SIDE)
def test_the_engine_is_as_fast_as_llamafactory_and_its_own_plan_faster(case):
    ratios = SIDE[case]["ratios"]
    assert ratios["native full loss / llamafactory"] >= 1
    assert ratios["plan / llamafactory"] > 1.9
