"""Software stacks, and their look-up in ``data/stacks.json``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from ftplan.errors import UnknownNameError
from ftplan.profiles.packaged import packaged_json
from ftplan.spec import RunConfig


@dataclass(frozen=True)
class StackProfile:
    """What a training loop does by itself, where loops differ.

    ``upcasts_trainables``: full fine-tuning and adapters hold fp32, but for `upcasts`' exception.
    ``builds_on_device``: the whole model comes to the device in its own dtype, and is packed or sharded then.
    ``empties_cache``: the cache is emptied as training begins, once weights are sharded.
    ``host_adam``: whose AdamW steps on the host under ZeRO with offload.
    ``shares_cores``: ranks share the cores of their host; otherwise each has one thread, as torchrun gives it.
    ``reentrant_checkpointing``: torch's older way to recompute, which runs a layer's forward without a graph.
    ``reentrant_adapters_under_zero3``: that way for adapters under ZeRO-3, whatever is asked (see `reenters`).
    ``checkpoints_calls``: a layer's hooks run inside its checkpoint (transformers before 5.23).
    ``loss_chunks``: parts of the tokens whose loss is computed one after another and kept for the backward, where the
    loss path is chunked; 0: TRL's tiles, which are made again.
    ``casts_outputs_to_fp32``: accelerate's autocast wrapper converts the model's outputs, logits among them, to fp32.
    """

    name: str
    default_loss_path: str
    casts_outputs_to_fp32: bool
    upcasts_trainables: bool
    recasts_quantized_adapters: bool
    reentrant_checkpointing: bool
    reentrant_adapters_under_zero3: bool
    checkpoints_calls: bool
    builds_on_device: bool
    empties_cache: bool
    host_adam: Literal["torch", "deepspeed"]
    shares_cores: bool
    source: str
    loss_chunks: int = 0

    def upcasts(self, config: RunConfig) -> bool:
        """Whether what trains is cast to fp32: not in pure 16-bit training, which has no autocast to compute in."""
        pure = not config.trains_adapters and config.precision == "none" and config.weights_dtype != "fp32"
        return self.upcasts_trainables and not pure

    def reenters(self, config: RunConfig) -> bool:
        """Whether activation checkpointing of ``config`` is the reentrant one."""
        forced = self.reentrant_adapters_under_zero3 and config.sharding == "zero3" and config.trains_adapters
        # LLaMA-Factory gives it up under FSDP2 (model/model_utils/checkpointing.py).
        usual = self.reentrant_checkpointing and config.sharding not in ("fsdp2", "fsdp2-grad-op", "hsdp")
        return usual or forced

    def holds_frozen(self, config: RunConfig) -> bool:
        """Whether ZeRO-3 keeps frozen weights whole to the end of the backward, once it has run their layer again.

        It lets go of them with the module in whose backward that happens. In a reentrant checkpoint around a layer's
        hooks that is none of the layers (measured on two H200 with transformers 5.17: benchmarks/data/engine.jsonl).
        """
        checkpoints = config.trains_adapters and config.gradient_checkpointing
        return checkpoints and self.checkpoints_calls and self.reenters(config)


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
