"""How many parameters a model has, how many of them a token passes, and how many train.

A LoRA adapter on a matrix ``[out, in]`` adds A ``[rank, in]`` and B ``[out, rank]``, so ``rank x (in + out)`` elements;
on the fused experts of a layer, that for each expert. `ftplan.estimators.targets` says which matrices have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from ftplan.estimators.blocks import tensors
from ftplan.estimators.prompts import prompt_params
from ftplan.estimators.targets import (
    ExpertTarget,
    expert_targets,
    layer_targets,
    model_expert_targets,
    model_targets,
    target_modules,
    targeted_linears,
)
from ftplan.profiles.model_schema import ExpertsProfile, ModelProfile, Part
from ftplan.spec import RunConfig

__all__ = [
    "ExpertTarget",
    "active_params",
    "expert_targets",
    "layer_targets",
    "params_by_part",
    "target_modules",
    "targeted_linears",
    "total_params",
    "trainable_params",
    "trainable_tensor_count",
    "untouched_params",
]

_CACHED: Final = 1024


def total_params(model: ModelProfile) -> int:
    """Count the unique elements of the model, tied weights once."""
    return model.total_params


def active_params(model: ModelProfile) -> int:
    """Count the elements that a token passes: all of them, but for the routed experts that it is not sent to."""
    return model.total_params - sum(group.count * _idle_params(group.layer.mlp.experts) for group in model.groups)


def _idle_params(experts: ExpertsProfile | None) -> int:
    return 0 if experts is None else experts.params // experts.count * (experts.count - experts.per_token)


def params_by_part(model: ModelProfile) -> Mapping[Part, int]:
    """Count the elements of embedding, attention, mlp, norms, head and vision tower; they add up to the total."""
    return model.params_by_part


def trainable_params(model: ModelProfile, config: RunConfig) -> int:
    """Count the elements that train: all of them, or those of the adapters.

    Raises `InputError` for a name in ``lora_targets`` that matches nothing, and for prompts that peft cannot add.
    """
    if config.trains_prompts:
        return prompt_params(model, config)
    if not config.trains_adapters:
        return model.total_params
    return config.lora_rank * _adapter_params_per_rank(model, config.lora_targets)


@lru_cache(maxsize=_CACHED)
def _adapted_tensors(model: ModelProfile, targets: str) -> int:
    modules = sum(count for count, _ in model_targets(model, targets))
    return 2 * (modules + sum(count for count, _ in model_expert_targets(model, targets)))


@lru_cache(maxsize=_CACHED)
def _weight_tensors(model: ModelProfile) -> int:
    return sum(1 for _ in tensors(model))


def trainable_tensor_count(model: ModelProfile, config: RunConfig) -> int:
    """Count the tensors that train: each weight, two matrices for each adapter, or a prompt and a gate."""
    if config.trains_prompts:
        return 2 * config.adapter_layers
    return _adapted_tensors(model, config.lora_targets) if config.trains_adapters else _weight_tensors(model)


def untouched_params(model: ModelProfile, config: RunConfig) -> int:
    """Count the trainable elements that text-only samples give no gradient: those of a vision tower."""
    if model.vision is None or config.trains_prompts:
        return 0
    if not config.trains_adapters:
        return model.vision.params
    return config.lora_rank * _vision_adapter_params_per_rank(model, config.lora_targets)


@lru_cache(maxsize=_CACHED)
def _vision_adapter_params_per_rank(model: ModelProfile, targets: str) -> int:
    towers = model.vision.linears if model.vision else ()
    adapted = model_targets(model, targets)[-len(towers) :] if towers else ()
    known = {id(linear) for _, linear in towers}
    return sum(count * (linear.in_features + linear.out_features) for count, linear in adapted if id(linear) in known)


@lru_cache(maxsize=_CACHED)
def _adapter_params_per_rank(model: ModelProfile, targets: str) -> int:
    linears = sum(count * (each.in_features + each.out_features) for count, each in model_targets(model, targets))
    return linears + sum(count * each.params_per_rank for count, each in model_expert_targets(model, targets))
