"""Which tensor of a checkpoint is which parameter of the model: transformers renames and reshapes while it loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from ftplan.errors import InputError


@dataclass(frozen=True)
class Names:
    """The parameters of a model and the checkpoint's names for them.

    ``stored_as`` has those that are stored as they are, ``converted`` those that loading makes out of other tensors.
    ``tied`` names for a parameter the one it shares its values with. ``transposed`` are weights of `Conv1D`, stored
    [in, out].
    """

    parameters: frozenset[str]
    stored_as: Mapping[str, str]
    converted: frozenset[str]
    tied: Mapping[str, str]
    transposed: frozenset[str]


def names_in(folder: Path, keys: Iterable[str]) -> Names:
    """The names for the model of ``folder``, whose checkpoint has the tensors ``keys``; no weight is read."""
    model = _empty_model(folder)
    parameters = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    stored_as: dict[str, str] = {}
    converted: set[str] = set()
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, parameters)
        if name not in parameters and key in parameters:
            name, pattern = key, None
        if pattern is None:
            stored_as.setdefault(name, key)
        else:
            converted.add(name)
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    tied = dict(model.all_tied_weights_keys)
    return Names(frozenset(parameters), stored_as, frozenset(converted), tied, frozenset(transposed))


def _empty_model(folder: Path) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"transformers cannot build the model of {folder}: {first}",
            hint="models with code of their own are not merged here",
            field="base",
        ) from error
