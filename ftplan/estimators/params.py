"""How many parameters a model has, and how many of them train.

A LoRA adapter on a matrix ``[out, in]`` adds A ``[rank, in]`` and B ``[out, rank]``, so ``rank x (in + out)`` elements;
on the fused experts of a layer, that for each expert. `ftplan.estimators.targets` says which matrices have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from ftplan.estimators.targets import (
    ExpertTarget,
    expert_targets,
    layer_targets,
    model_expert_targets,
    model_targets,
    target_modules,
    targeted_linears,
)
from ftplan.profiles.schema import ModelProfile, Part
from ftplan.spec import RunConfig

__all__ = [
    "ExpertTarget",
    "expert_targets",
    "layer_targets",
    "params_by_part",
    "target_modules",
    "targeted_linears",
    "total_params",
    "trainable_params",
]

_CACHED: Final = 1024


def total_params(model: ModelProfile) -> int:
    """Count the unique elements of the model, tied weights once."""
    return model.total_params


def params_by_part(model: ModelProfile) -> Mapping[Part, int]:
    """Count the elements of embedding, attention, mlp, norms, head and vision tower; they add up to the total."""
    return model.params_by_part


def trainable_params(model: ModelProfile, config: RunConfig) -> int:
    """Count the elements that train: all of them, or those of the adapters.

    Raises `InputError` for a name in ``lora_targets`` that matches nothing.
    """
    if not config.trains_adapters:
        return model.total_params
    return config.lora_rank * _adapter_params_per_rank(model, config.lora_targets)


@lru_cache(maxsize=_CACHED)
def _adapter_params_per_rank(model: ModelProfile, targets: str) -> int:
    linears = sum(count * (each.in_features + each.out_features) for count, each in model_targets(model, targets))
    return linears + sum(count * each.params_per_rank for count, each in model_expert_targets(model, targets))
