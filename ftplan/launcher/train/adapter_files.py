"""A saved LoRA adapter as changes to weights: what is added to which, what takes the place of which.

Only what is understood is taken: peft has many variants of LoRA that keep the files' names and mean something else, and
merging one of them as plain LoRA would give a model that is silently wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.launcher.weight_files import Stored, read_header

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."

UNDERSTOOD: Final = frozenset(
    {"r", "lora_alpha", "use_rslora", "alpha_pattern", "use_dora", "bias", "peft_type", "fan_in_fan_out"}
)
"""Settings that say how weights change, and that are honoured here."""

NO_MATTER: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "lora_dropout", "modules_to_save", "peft_version", "rank_pattern", "revision"),
        *("target_modules", "task_type", "qalora_group_size", "megatron_core", "eva_config", "runtime_config"),
        # Which weights an adapter began with matters where the base changes with them: see `BASE_KEEPING`.
        *("init_lora_weights", "loftq_config", "corda_config", "lora_ga_config"),
    }
)
"""Settings that mattered to the training, or that the tensors themselves tell."""

BASE_KEEPING: Final = (True, False, "gaussian", "eva", "orthogonal")
"""Initial values under which the base's weights stay what they were."""

OTHER_METHODS: Final = {
    "ADAPTION_PROMPT": "its prompts join the attention in every layer, which no weight of the base can express",
    "PREFIX_TUNING": "it adds keys and values to the attention, which no weight of the base can express",
    "PROMPT_TUNING": "it adds tokens before the prompt, which no weight of the base can express",
    "P_TUNING": "it adds tokens before the prompt, which no weight of the base can express",
}


@dataclass(frozen=True, slots=True)
class Lora:
    """``scaling`` x B A is added. For embeddings A is [rank, rows] and the sum is its transpose.

    ``magnitude`` is DoRA's: the norm that each output row of the sum is then given.
    """

    a: Stored
    b: Stored
    scaling: float
    embedding: bool
    magnitude: Stored | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one weight: another takes its place, then LoRA is added; either may be None."""

    replacement: Stored | None = None
    lora: Lora | None = None


def read_changes(folder: Path) -> dict[str, Change]:
    """The changes of the adapter in ``folder``, by the name of the parameter in the model.

    Raises InputError for an adapter that cannot be merged, or that is damaged.
    """
    config = _config(folder)
    _check_method(config)
    _check_settings(config)
    stored = {one.name: one for one in read_header(_weights(folder))}
    changes: dict[str, Change] = {}
    parts: dict[str, dict[str, Stored]] = {}
    for name, tensor in stored.items():
        module, part = _parted(name)
        if part is None:
            changes[module] = Change(replacement=tensor)
        else:
            parts.setdefault(module, {})[part] = tensor
    for module, found in parts.items():
        earlier = changes.get(f"{module}.weight", Change())
        changes[f"{module}.weight"] = replace(earlier, lora=_lora(module, found, config))
    return changes


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except OSError as error:
        raise InputError(f"no adapter in {folder}: {CONFIG}: {error.strerror}", field="adapter") from error
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is not JSON", field="adapter") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG} is no adapter's configuration", field="adapter")
    return config


def _weights(folder: Path) -> Path:
    if not (folder / WEIGHTS).exists():
        raise InputError(
            f"{folder} holds no {WEIGHTS}",
            hint="an adapter saved as .bin: load it with peft once and save it again",
            field="adapter",
        )
    return folder / WEIGHTS


def _check_method(config: Mapping[str, Any]) -> None:
    method = str(config.get("peft_type"))
    if method != "LORA":
        reason = OTHER_METHODS.get(method, "only LoRA and DoRA are merged here")
        raise InputError(f"a {method} adapter cannot be merged: {reason}", hint="load it with peft", field="adapter")


def _check_settings(config: Mapping[str, Any]) -> None:
    unknown = sorted(name for name, value in config.items() if value and name not in UNDERSTOOD | NO_MATTER)
    if unknown:
        told = ", ".join(f"{name} = {json.dumps(config[name])}" for name in unknown)
        raise _not_here(f"the adapter has {told}, which is not merged here")
    began = config.get("init_lora_weights", True)
    if began not in BASE_KEEPING:
        raise _not_here(f"init_lora_weights = {began!r} changed the base's weights before the training")


def _not_here(message: str) -> InputError:
    return InputError(message, hint="merge it with peft's merge_and_unload", field="adapter")


def _parted(name: str) -> tuple[str, str | None]:
    """The module of a LoRA tensor and which part it is; of any other, the parameter whose place it takes and None."""
    place = name.removeprefix(PREFIX)
    found = re.fullmatch(
        r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?", place
    )
    if found:
        return found[1], found[2]
    if "lora_" in place:
        raise _not_here(f"the adapter's tensor {name} is of a kind that is not merged here")
    return re.sub(r"\.(base_layer|modules_to_save)(?=\.[^.]+$)", "", place), None


def _lora(module: str, parts: Mapping[str, Stored], config: Mapping[str, Any]) -> Lora:
    embedding = "lora_embedding_A" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    magnitude = parts.get("lora_magnitude_vector")
    if set(parts) - {*names, "lora_magnitude_vector"} or not set(names) <= set(parts):
        raise InputError(f"the adapter of {module} lacks a part: it has {', '.join(sorted(parts))}", field="adapter")
    a, b = (parts[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise _not_here(f"the adapter of {module} has shapes {a.shape} and {b.shape}, which are no two matrices")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise InputError(f"the adapter of {module} and use_dora contradict each other", field="adapter")
    rank = a.shape[0]
    alpha = _of_module(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Lora(a, b, scaling, embedding, magnitude)


def _of_module(patterns: Mapping[str, Any], module: str, default: Any) -> float:
    """The value of the first pattern that matches the end of ``module``, as peft looks it up."""
    matching = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return float(next(matching, default))
