"""LLaMA-Adapter's prompts: which layers have one, and what of it trains.

As peft 0.21.2 has it (tuners/adaption_prompt): the attention of the last ``adapter_layers`` decoder layers is wrapped
in a module with a prompt [1, adapter_len, hidden size] and a gate [1], and everything else is frozen. ftplan models the
wrapper of Llama and Mistral; peft's third, of GPT-2, is another module around another attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

from ftplan.errors import InputError
from ftplan.profiles.model_schema import LayerGroup, LayerProfile, ModelProfile
from ftplan.spec import RunConfig

MODEL_TYPES: Final = ("llama", "mistral")
"""Architectures whose attention can be wrapped (config.py, TRANSFORMERS_MODEL_CONFIG), but for GPT-2."""

GATE: Final = 1
_CACHED: Final = 256


def unsupported(model: ModelProfile) -> str:
    """Why peft cannot put prompts into ``model``; empty where it can.

    The wrapper takes the number of query heads for one head of keys from the widths of two matrices (layer.py,
    AdaptedAttention.forward: ``k_proj.in_features // k_proj.out_features``), which is right only where all query heads
    together are as wide as the hidden state.
    """
    if model.model_type not in MODEL_TYPES:
        return f"LLaMA-Adapter is there for {' and '.join(MODEL_TYPES)}, not for {model.model_type}"
    attention = model.groups[0].layer.attention
    if attention.heads * attention.head_dim != model.hidden_size:
        return (
            f"peft's LLaMA-Adapter needs query heads as wide as the hidden state, and {model.id} has "
            f"{attention.heads} of {attention.head_dim} over {model.hidden_size}"
        )
    return ""


def prompt_tensors(config: RunConfig, hidden_size: int) -> tuple[int, int]:
    """Elements of the prompt and the gate of one layer."""
    return config.adapter_len * hidden_size, GATE


def prompt_params(model: ModelProfile, config: RunConfig) -> int:
    """Elements that train: a prompt and a gate for each adapted layer.

    Raises InputError for an architecture that peft cannot adapt, and for more layers than the model has.
    """
    check(model, config)
    return config.adapter_layers * sum(prompt_tensors(config, model.hidden_size))


def check(model: ModelProfile, config: RunConfig) -> None:
    """Raise InputError where peft raises (model.py, add_adapter; config.py, prepare_config) or its forward fails."""
    reason = unsupported(model)
    if reason:
        raise InputError(reason, hint="use --method lora", field="method")
    if config.adapter_layers > model.layer_count:
        raise InputError(
            f"adapter_layers is {config.adapter_layers}, and {model.id} has {model.layer_count} layers",
            hint=f"--adapter-layers {model.layer_count} adapts them all",
            field="adapter_layers",
        )


def with_prompts(model: ModelProfile, config: RunConfig) -> ModelProfile:
    """``model`` with the prompts that ``config`` trains, the same object for the same ones; ``model`` without any.

    Raises InputError as `prompt_params` does.
    """
    if not config.trains_prompts:
        return model
    check(model, config)
    return _prompted(model, config.adapter_len, config.adapter_layers)


@lru_cache(maxsize=_CACHED)
def _prompted(model: ModelProfile, tokens: int, layers: int) -> ModelProfile:
    return replace(model, groups=tuple(_split(model, model.layer_count - layers, tokens)))


def _split(model: ModelProfile, first: int, tokens: int) -> Iterator[LayerGroup]:
    """The groups of layers before ``first``, and of those from it on, which get a prompt of so many ``tokens``."""
    done = 0
    for group in model.groups:
        indices = group.indices or tuple(range(done, done + group.count))
        done += group.count
        prompted = replace(group.layer, prompt_tokens=tokens)
        yield from _group(group.layer, tuple(index for index in indices if index < first))
        yield from _group(prompted, tuple(index for index in indices if index >= first))


def _group(layer: LayerProfile, indices: tuple[int, ...]) -> Iterator[LayerGroup]:
    if indices:
        yield LayerGroup(len(indices), layer, indices)
