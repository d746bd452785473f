"""What is traced: one configuration of one architecture on one rank. Plain data, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ftplan.profiles.stacks import StackProfile
from ftplan.spec import RunConfig

TRACED_MICRO_BATCHES: Final = 3
"""Micro-batches of a step that are traced: the first, one that adds to its gradients, and the last, which reduces."""


def micro_batches(accumulation: int) -> int:
    """How many of ``accumulation`` micro-batches are traced; the others do what the second does."""
    return min(accumulation, TRACED_MICRO_BATCHES)


@dataclass(frozen=True)
class TraceSettings:
    """Everything that determines a trace.

    ``model`` is a Hugging Face config as in config.json. ``load`` says how the weights reach the device: ``pretrained``
    (one by one, a 4-bit weight packed as it comes) or ``built`` (random weights made there, then packed in place).
    ``whole`` traces every layer; otherwise a few, which then stand for the others. ``evaluates`` adds an evaluation.
    """

    config: RunConfig
    model: Mapping[str, Any]
    stack: StackProfile
    world_size: int = 1
    rank: int = 0
    ranks_per_node: int = 1
    capability: tuple[int, int] = (9, 0)
    workspace_bytes: int = 32 << 20
    steps: int = 2
    load: Literal["pretrained", "built"] = "pretrained"
    whole: bool = False
    evaluates: bool = True
    saves: bool = True


def worst_rank(config: RunConfig, world_size: int) -> int:
    """The rank that needs most: the first, whose shards are the largest, but the last under ZeRO-1 and 2.

    Gradients come from the end of the model, so that the last rank has its partition of them from the first one on.
    ZeRO-1 without overlap reduces when all are there, from the begin of the model on.
    """
    partitions = config.sharding == "zero2" or (config.sharding == "zero1" and config.zero_overlap)
    return world_size - 1 if partitions and config.offload == "none" else 0
