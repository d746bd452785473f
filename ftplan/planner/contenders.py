"""What may be as fast as a plan in truth: configurations to be measured against it."""

from __future__ import annotations

from typing import Final

from ftplan.planner.ranking import speed
from ftplan.planner.search import search, without_collections
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Candidate, Plan
from ftplan.spec import PlanRequest, RunConfig

ALIKE: Final = ("method", "lora_rank", "lora_targets", "optimizer", "seq_len")
"""Fields that decide what is trained: configurations to be measured against each other have them in common."""


def contenders(chosen: Plan, model: ModelProfile, cluster: Cluster, most: int) -> list[Candidate]:
    """What may be as fast as a plan in truth: the plan first, then by predicted speed what differs from it.

    Of each kind (sharding, offload, checkpointing, kernels) the best and the two micro-batches beside the plan's; only
    of the plan's method, rank and optimizer, so that any of them trains the same model, and offload only where the plan
    has it: to measure that takes longest.
    """
    assert chosen.config is not None
    plan_config = chosen.config
    with without_collections():
        found = search(_with_rank(chosen.request, plan_config), model, cluster)
    alike = [one for one in found.fitting if _trains_alike(one.config, plan_config) and one.config != plan_config]
    seen: set[tuple[object, ...]] = {_kind(plan_config)}
    first, beside = [], []
    for one in sorted(alike, key=speed, reverse=True):
        if _kind(one.config) not in seen:
            seen.add(_kind(one.config))
            first.append(one)
        elif _kind(one.config) == _kind(plan_config) and _is_near(one.config, plan_config):
            beside.append(one)
    rest = sorted((*first, *beside), key=speed, reverse=True)
    return [Candidate(plan_config, chosen.estimate), *rest][:most]


def _with_rank(request: PlanRequest, config: RunConfig) -> PlanRequest:
    """``request``, where the rank was left to the planner for the one it took."""
    if not request.highest_rank or not config.trains_lora:
        return request
    return request.model_copy(update={"pins": {**request.pins, "lora_rank": config.lora_rank}})


def _kind(config: RunConfig) -> tuple[object, ...]:
    return (config.sharding, config.offload, config.gradient_checkpointing, config.kernels)


def _trains_alike(one: RunConfig, other: RunConfig) -> bool:
    offloads_more = other.offload == "none" != one.offload
    return not offloads_more and all(getattr(one, field) == getattr(other, field) for field in ALIKE)


def _is_near(one: RunConfig, other: RunConfig) -> bool:
    return one.micro_batch in (other.micro_batch * 2, other.micro_batch // 2)
