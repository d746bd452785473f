"""Requests, clusters and candidates for the planner's tests."""

from __future__ import annotations

from typing import Any

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.search import plan as search_plan
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import load_model
from ftplan.results import Candidate, Plan, Reason
from ftplan.spec import PlanRequest, RunConfig


def cluster(gpus: str) -> Cluster:
    return resolve_inventory(parse_inventory(gpus))


def request(gpus: str = "2x24GB", model: str = "Qwen-7B", **fields: Any) -> PlanRequest:
    return PlanRequest(model=model, inventory=parse_inventory(gpus), **fields)


def planned(gpus: str = "2x24GB", model: str = "Qwen-7B", **fields: Any) -> Plan:
    return search_plan(request(gpus, model, **fields), load_model(model), cluster(gpus))


def reason(plan: Plan, field: str) -> Reason:
    (only,) = [each for each in plan.reasons if each.field == field]
    return only


def estimated(gpus: str = "2x24GB", **fields: Any) -> Candidate:
    config = RunConfig(**{"model": "Qwen-7B", **fields})
    return Candidate(config, estimate(config, load_model(config.model), cluster(gpus)))
