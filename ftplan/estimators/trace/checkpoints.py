"""What an activation checkpoint of a layer lies around: the layer's call, its hooks included, or its forward.

transformers did the one before 5.23 and does the other since. DeepSpeed's ZeRO-3 lets go of frozen weights at a layer's
hooks, and TRL makes checkpoints reentrant for adapters under ZeRO-3: then it decides whether frozen weights of layers
stay whole until the backward ends. Measured with transformers 5.17 on two H200, LoRA on Llama-3.2-1B: 4.06 GiB at peak
with checkpoints around calls, 3.76 around forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from ftplan.estimators.trace.patches import replaced

CHECKPOINTS_CALLS: Final = "__call__" in vars(GradientCheckpointingLayer)
"""Whether this transformers puts checkpoints around calls."""


@contextmanager
def checkpointing(modules: Iterable[torch.nn.Module], *, calls: bool) -> Iterator[None]:
    """Layers among ``modules`` checkpoint their ``calls``, or their forwards, whatever this transformers does."""
    if calls == CHECKPOINTS_CALLS:
        yield
        return
    for layer in modules:
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = _plain_forward(layer) if calls else partial(_checkpointed, layer, layer.forward)
    with replaced(GradientCheckpointingLayer, "__call__", _checkpointed_call if calls else torch.nn.Module.__call__):
        yield


def _plain_forward(layer: GradientCheckpointingLayer) -> Callable[..., Any]:
    forward = type(layer).forward
    return partial(getattr(forward, "__wrapped__", forward), layer)


def _checkpointed_call(layer: GradientCheckpointingLayer, *args: Any, **kwargs: Any) -> Any:
    return _checkpointed(layer, partial(torch.nn.Module.__call__, layer), *args, **kwargs)


def _checkpointed(layer: GradientCheckpointingLayer, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (layer.gradient_checkpointing and layer.training):
        return run(*args, **kwargs)
    kwargs |= {name: None for name in ("past_key_values", "layer_past") if name in kwargs}
    if "use_cache" in kwargs:
        kwargs["use_cache"] = False
    return layer._gradient_checkpointing_func(partial(run, **kwargs), *args)
