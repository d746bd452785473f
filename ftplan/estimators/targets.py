"""Which modules LoRA adapts.

It follows peft 0.21 on transformers 5:

- ``all-linear`` is every ``nn.Linear`` and Conv1D but the output head: vision towers included. In Mixtral, Qwen3-MoE
  and DeepSeek peft extends it to the routers and to the fused expert parameters, where A and B exist once an expert,
  and gate and up in one matrix double the rank; in exchange the dense and shared MLPs of these models, whose module
  names it now takes for the experts', get none. gpt-oss has no such translation: attention alone.
- ``qv`` is the query and the value projection of the text layers: the fused module where there is one, and with latent
  attention the matrix that makes the queries and ``kv_b_proj``. It stands for those module names, so that a vision
  tower that uses the same names is adapted too, as peft would. (peft's own default for Phi adds fc1 and fc2.)
- Names match as peft matches a list: the whole path of a module, or the end of it after a dot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ftplan.errors import InputError
from ftplan.profiles.model_schema import LayerProfile, LinearProfile, ModelProfile
from ftplan.spec import RunConfig

ALL_LINEAR: Final = "all-linear"
QUERY_VALUE: Final = "qv"
_OUTSIDE_LAYERS: Final = frozenset(
    {"lm_head", "embed_out", "output_layer", "output", "embed_tokens", "wte", "embed_in"}
)
_CACHED: Final = 1024


@dataclass(frozen=True)
class ExpertTarget:
    """A LoRA adapter on a fused expert parameter or a router.

    ``weight`` has the shape of one expert's part, ``copies`` is the number of experts (1 for a router), and the rank is
    ``rank_factor`` times the configured one.
    """

    weight: LinearProfile
    copies: int
    rank_factor: int

    @property
    def params_per_rank(self) -> int:
        """Elements of A and B together for each unit of the configured rank."""
        return self.copies * self.rank_factor * (self.weight.in_features + self.weight.out_features)


def targeted_linears(model: ModelProfile, config: RunConfig) -> tuple[tuple[int, LinearProfile], ...]:
    """List the linear modules that get an adapter, with how many of each: layers first, then the vision tower.

    Fused expert parameters and routers are not linear modules: see `expert_targets`. Raises `InputError` for a name
    that matches nothing in the model.
    """
    return model_targets(model, config.lora_targets)


def layer_targets(layer: LayerProfile, config: RunConfig) -> tuple[LinearProfile, ...]:
    """List the linear modules of one layer that get an adapter; names that match nothing are not noticed here."""
    return layer_targets_named(layer, config.lora_targets)


def expert_targets(layer: LayerProfile, config: RunConfig) -> tuple[ExpertTarget, ...]:
    """List the fused expert parameters and the router of one layer as far as they get an adapter.

    peft folds such an adapter into a copy of the whole parameter in every forward, and takes no dropout with it.
    """
    return expert_targets_named(layer, config.lora_targets)


def target_modules(model: ModelProfile, config: RunConfig) -> tuple[str, ...]:
    """Spell ``lora_targets`` as peft's ``target_modules`` takes them: ``qv`` becomes the model's module names."""
    return _names(model, config.lora_targets)


@lru_cache(maxsize=_CACHED)
def model_targets(model: ModelProfile, targets: str) -> tuple[tuple[int, LinearProfile], ...]:
    """Do what `targeted_linears` does, from the text of ``lora_targets`` alone."""
    names = _names(model, targets)
    _check_names(model, names)
    in_layers = [(group.count, each) for group in model.groups for each in layer_targets_named(group.layer, targets)]
    in_vision = [(count, each) for count, each in _vision_linears(model) if _is_targeted(each, names)]
    return (*in_layers, *in_vision)


def model_expert_targets(model: ModelProfile, targets: str) -> tuple[tuple[int, ExpertTarget], ...]:
    """List the adapters on experts and routers with how many layers have each."""
    return tuple((group.count, each) for group in model.groups for each in expert_targets_named(group.layer, targets))


@lru_cache(maxsize=_CACHED)
def layer_targets_named(layer: LayerProfile, targets: str) -> tuple[LinearProfile, ...]:
    """Do what `layer_targets` does, from the text of ``lora_targets`` alone."""
    names = _layer_names(layer, targets)
    return tuple(each for each in layer.linears if _is_targeted(each, names))


@lru_cache(maxsize=_CACHED)
def expert_targets_named(layer: LayerProfile, targets: str) -> tuple[ExpertTarget, ...]:
    """Do what `expert_targets` does, from the text of ``lora_targets`` alone."""
    experts = layer.mlp.experts
    if experts is None or experts.router is None:
        return ()
    names = _layer_names(layer, targets)
    chosen = [new for old, new in experts.peft_names if ALL_LINEAR in names or _any_ends(names, old)]
    weights = [(each, experts.count) for each in experts.weights] + [(experts.router, 1)]
    return tuple(ExpertTarget(each, copies, chosen.count(each.name)) for each, copies in weights if each.name in chosen)


def _is_targeted(linear: LinearProfile, names: tuple[str, ...]) -> bool:
    if not linear.is_linear or linear.shadowed:
        return False
    return ALL_LINEAR in names or any(_matches(linear, name) for name in names)


def _matches(linear: LinearProfile, name: str) -> bool:
    return linear.path == name or linear.path.endswith(f".{name}")


def _any_ends(names: tuple[str, ...], old: str) -> bool:
    return any(name == old or name.endswith(f".{old}") for name in names)


def _names(model: ModelProfile, targets: str) -> tuple[str, ...]:
    return _layer_names(model.groups[0].layer, targets)


def _layer_names(layer: LayerProfile, targets: str) -> tuple[str, ...]:
    listed = targets.split(",")
    if QUERY_VALUE not in listed:
        return tuple(listed)
    return tuple(name for name in listed if name != QUERY_VALUE) + _query_value_names(layer)


def _query_value_names(layer: LayerProfile) -> tuple[str, ...]:
    names = [each.name for each in layer.linears if each.part == "attention"]
    if layer.attention.fused_qkv:
        return (names[0],)
    if layer.attention.kind == "mla":
        return ("q_b_proj" if "q_b_proj" in names else "q_proj", "kv_b_proj")
    return "q_proj", "v_proj"


def _vision_linears(model: ModelProfile) -> tuple[tuple[int, LinearProfile], ...]:
    return model.vision.linears if model.vision else ()


def _check_names(model: ModelProfile, names: tuple[str, ...]) -> None:
    for name in names:
        if name != ALL_LINEAR and not _exists(model, name):
            raise _no_such_target(model, name)
    for group in model.groups:
        _check_fused(group.layer, names)


def _exists(model: ModelProfile, name: str) -> bool:
    linears = [each for group in model.groups for each in group.layer.linears]
    linears += [each for _, each in _vision_linears(model)]
    if any(_matches(each, name) for each in linears if each.is_linear and not each.shadowed):
        return True
    return any(_any_ends((name,), old) for old, _ in _translated(model))


def _translated(model: ModelProfile) -> Iterator[tuple[str, str]]:
    for group in model.groups:
        yield from group.layer.mlp.experts.peft_names if group.layer.mlp.experts else ()


def _check_fused(layer: LayerProfile, names: tuple[str, ...]) -> None:
    """Refuse what peft refuses: one of two names that transformers keeps in one parameter."""
    pairs = layer.mlp.experts.peft_names if layer.mlp.experts and ALL_LINEAR not in names else ()
    for new in {new for _, new in pairs}:
        parts = [old for old, target in pairs if target == new]
        given = [old for old in parts if _any_ends(names, old)]
        if given and len(given) < len(parts):
            missing = ", ".join(old for old in parts if old not in given)
            message = f"lora_targets names {', '.join(given)} without {missing}, which is in the same parameter, {new}"
            raise InputError(message, hint=f"add {missing}", field="lora_targets")


def _no_such_target(model: ModelProfile, name: str) -> InputError:
    if name.split(".")[-1] in _OUTSIDE_LAYERS:
        message = f"lora_targets: adapters on the embedding or the head ({name}) are not modelled"
    else:
        message = f"lora_targets: {name!r} is no linear module of {model.id}"
    linears = [each for group in model.groups for each in group.layer.linears if not each.shadowed]
    linears += [each for _, each in _vision_linears(model)]
    valid = dict.fromkeys([each.name for each in linears] + [old for old, _ in _translated(model)])
    return InputError(message, hint=f"valid: {ALL_LINEAR}, {QUERY_VALUE}, {', '.join(valid)}", field="lora_targets")
