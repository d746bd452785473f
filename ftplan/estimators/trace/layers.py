"""The decoder layers of a model: which of them are alike, and how few can stand for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

Fingerprint: TypeAlias = tuple[object, ...]

KEPT_UNITS: Final = 4
"""Units that are traced: the first, two in the middle that must be alike, and the last."""
KEPT_SHARDED_UNITS: Final = 6
"""With parameters gathered ahead of their use the ends reach further into the middle."""
LONGEST_PERIOD: Final = 12
LONGEST_PREFIX: Final = 6
_PLAIN: Final = (bool, int, float, str)
_OWN_PLACE: Final = frozenset({"layer_idx", "layer_id", "_module_name"})


@dataclass(frozen=True)
class Reduction:
    """Which layers are kept: ``units[i]`` is the unit of the i-th kept layer; ``copies`` are left out of the middle.

    A unit is one period of the layers' pattern; the first also holds what precedes the pattern, the last its remainder.
    ``lower`` is the lower of the two units in the middle between which the copies belong.
    """

    kept: tuple[int, ...]
    units: tuple[int, ...]
    copies: int
    lower: int = 1


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of decoder layers: of all lists of layers the one with the most parameters."""
    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    if not lists:
        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError("no list of decoder layers was found in this architecture")
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def whole(count: int) -> Reduction:
    """Keep every layer, each a unit of its own."""
    return Reduction(tuple(range(count)), tuple(range(count)), 0)


def reduction(prints: list[Fingerprint], units: int = KEPT_UNITS) -> Reduction:
    """The fewest layers that show every kind of layer at both ends and two equal periods in the middle."""
    count = len(prints)
    for period in range(1, LONGEST_PERIOD + 1):
        for prefix in range(LONGEST_PREFIX + 1):
            periods = (count - prefix) // period
            if periods <= units:
                break
            if all(prints[i] == prints[i + period] for i in range(prefix, count - period)):
                return _kept(count, prefix, period, periods, units)
    return whole(count)


def _kept(count: int, prefix: int, period: int, periods: int, units: int) -> Reduction:
    tail = period + (count - prefix) % period
    head = prefix + (units - 1) * period
    kept = (*range(head), *range(count - tail, count))
    labels = [0] * (prefix + period)
    for unit in range(1, units - 1):
        labels += [unit] * period
    labels += [units - 1] * tail
    return Reduction(kept, tuple(labels), periods - units, units // 2 - 1)


def fingerprints(model: torch.nn.Module, layers: torch.nn.ModuleList) -> list[Fingerprint]:
    """What tells layers apart: their modules, the shapes and dtypes of parameters, and plain settings of any module."""
    types = getattr(_text_config(model), "layer_types", None) or [None] * len(layers)
    return [(types[index] if index < len(types) else None, *_fingerprint(layer)) for index, layer in enumerate(layers)]


def _fingerprint(layer: torch.nn.Module) -> Fingerprint:
    parts: list[object] = []
    for name, module in layer.named_modules():
        settings = tuple(
            (key, value) for key, value in vars(module).items() if isinstance(value, _PLAIN) and key not in _OWN_PLACE
        )
        parts.append((name, type(module).__name__, settings))
    parts += [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()]
    return tuple(parts)


def keep(model: torch.nn.Module, layers: torch.nn.ModuleList, kept: tuple[int, ...]) -> None:
    """Leave only the layers ``kept`` in ``layers``, and make the model's config agree."""
    config = _text_config(model)
    chosen = [layers[index] for index in kept]
    for index, layer in enumerate(chosen):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    del layers[len(chosen) :]
    for index, layer in enumerate(chosen):
        layers[index] = layer
    for name, value in _per_layer(config, len(kept), max(kept) + 1).items():
        setattr(config, name, [value[index] for index in kept] if isinstance(value, list) else len(kept))


def _per_layer(config: Any, kept: int, count: int) -> dict[str, Any]:
    """Settings of a config that count layers or list something for each of them."""
    named = {"num_hidden_layers", "n_layer", "num_layers", "n_layers"}
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if (name in named and value == count) or (isinstance(value, list) and len(value) == count != kept):
            found[name] = value
    return found


def _text_config(model: torch.nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config(decoder=True)
