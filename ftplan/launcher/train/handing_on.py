"""Loading where one rank loads for all: under FSDP2 accelerate hands on rank 0's weights, each in its turn.

The other ranks need a model with the same parameters, of which nothing is ever read: theirs are memory that is never
touched, so that the system never has to find any. They cannot be on ``meta``, because accelerate tells an optimizer's
parameters apart by their addresses. transformers 5.23 has a way of its own, by variables of the environment that the
trainer sets after a model is loaded; even with them, a rank that converts weights to another dtype reads all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel

from ftplan.launcher.artifacts import fsdp_config
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.model import Model, adapted, base_model, from_config
from ftplan.spec import RunConfig

Described: TypeAlias = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Shape and dtype of each parameter, by name."""


def is_handed_on(config: RunConfig) -> bool:
    """Whether ranks other than the first receive their weights from it."""
    sharded = fsdp_config(config)
    return sharded is not None and bool(sharded["cpu_ram_efficient_loading"])


def build_model(job: TrainJob, control: Control) -> Model:
    """The model of ``job`` on this rank, ready for the trainer; every rank must call it."""
    if not is_handed_on(job.config):
        return adapted(base_model(job, control), job)
    base = base_model(job, control) if control.is_main else None
    described = control.gather(None if base is None else describe(base))[0]
    assert described is not None, "rank 0 has loaded the model"
    return adapted(untouched_model(job, described) if base is None else base, job)


def describe(model: PreTrainedModel) -> Described:
    """The parameters of ``model``."""
    return {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}


def untouched_model(job: TrainJob, described: Described) -> PreTrainedModel:
    """The model of ``job`` with undefined weights as ``described``, in memory that is not touched."""
    with init_empty_weights(include_buffers=False):
        model = from_config(job)
    model.tie_weights()
    names = [name for name, _ in model.named_parameters()]
    if set(names) != set(described):
        raise RuntimeError(f"rank 0 has loaded other parameters: {sorted(set(names) ^ set(described))[:3]}")
    for name in names:
        shape, dtype = described[name]
        module, _, own_name = name.rpartition(".")
        memory = torch.empty(shape, dtype=_handed_on_as(dtype, job.config), device="cpu")
        model.get_submodule(module)._parameters[own_name] = torch.nn.Parameter(memory)
    model.tie_weights()
    return model


def _handed_on_as(dtype: torch.dtype, config: RunConfig) -> torch.dtype:
    """accelerate makes what trains fp32 under mixed precision, on every rank: done by it here, it would be touched."""
    makes_fp32 = config.method == "full" and config.precision != "none"
    return torch.float32 if makes_fp32 and dtype.is_floating_point else dtype
