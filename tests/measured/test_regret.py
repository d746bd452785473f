"""Today's plans beside what was measured for them and their neighbours (benchmarks/data/regret.jsonl)."""

import pytest

from benchmarks.regret.__main__ import CARDS, outcomes
from benchmarks.regret.combinations import COMBINATIONS
from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model

NOT_MEASURED = {"1x48-full-15"}
"""The session on the device machine ended before its plan's turn."""

by_id = pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda one: one.id)


@by_id
def test_the_plan_reaches_95_percent_of_the_best_that_was_measured(combination):
    outcome = next(each for each in outcomes([combination.id]))
    if combination.id in NOT_MEASURED:
        assert outcome.planned is None
        return
    assert outcome.part >= 0.95
    for advice in ("llamafactory example", "advice"):
        reached = outcome.named(advice)
        assert reached is None or reached < outcome.planned


@by_id
def test_memory_of_every_trial_was_told_right(combination):
    outcome = next(each for each in outcomes([combination.id]))
    card = CARDS[combination.gpus]
    cluster = resolve_inventory(parse_inventory(combination.inventory(card)))
    assert outcome.rows
    for row in outcome.rows:
        if row.status == "failed":
            continue
        told = estimate(row.config, load_model(row.config.model), cluster, replays=True)
        assert told.fits == (row.status == "measured"), (row.name, row.config)
