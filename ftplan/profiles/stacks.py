"""Software stacks, and their look-up in ``data/stacks.json``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from ftplan.errors import UnknownNameError
from ftplan.profiles.packaged import packaged_json


@dataclass(frozen=True)
class StackProfile:
    """What a training loop does by itself, where loops differ.

    ``upcasts_trainables``: full fine-tuning and adapters hold fp32 (LLaMA-Factory unless pure_bf16).
    ``builds_on_device``: the whole model comes to the device in its own dtype, and is packed or sharded then.
    ``empties_cache``: the cache is emptied as training begins, once weights are sharded.
    ``host_adam``: whose AdamW steps on the host under ZeRO with offload.
    ``shares_cores``: ranks share the cores of their host; otherwise each has one thread, as torchrun gives it.
    ``reentrant_checkpointing``: torch's older way to recompute, which runs a layer's forward without a graph.
    ``casts_outputs_to_fp32``: accelerate's autocast wrapper converts the model's outputs, logits among them, to fp32.
    """

    name: str
    default_loss_path: str
    casts_outputs_to_fp32: bool
    upcasts_trainables: bool
    recasts_quantized_adapters: bool
    reentrant_checkpointing: bool
    builds_on_device: bool
    empties_cache: bool
    host_adam: Literal["torch", "deepspeed"]
    shares_cores: bool
    source: str


def load_stack(name: str) -> StackProfile:
    """Return the stack called ``name`` (any case); raise `UnknownNameError` if there is none."""
    stack = _stacks().get(name.strip().lower())
    if stack is None:
        raise UnknownNameError("stack", name, list_stacks(), field="stack", hint="valid: " + ", ".join(list_stacks()))
    return stack


def list_stacks() -> tuple[str, ...]:
    """Return the names of all stacks."""
    return tuple(_stacks())


@cache
def _stacks() -> dict[str, StackProfile]:
    return {row["name"]: StackProfile(**row) for row in packaged_json("stacks.json")["stacks"]}
