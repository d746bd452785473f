"""A configuration as the files of a framework, read back before they are given out: what they say is what was meant."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from ftplan import __version__
from ftplan.errors import CannotExpressError, InputError
from ftplan.estimators.targets import target_modules
from ftplan.files import user_path
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import ACCELERATE_FILE, DEEPSPEED_FILE, LAUNCH_FILE, Emitted, Format, Target
from ftplan.launcher.formats.sources import opened
from ftplan.launcher.formats.versions import for_release
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.profiles.models import hub_id, load_model
from ftplan.spec import RunConfig

PARTIAL: Final[Mapping[str, frozenset[str]]] = {
    "deepspeed": frozenset({"stack"}),
    "accelerate": frozenset({"stack"}),
    "transformers": frozenset({"stack", "padding"}),
}
"""Formats whose files say only a part of a configuration, and fields that their readers take for granted."""
_FOLDER: Final = Path("emitted")


def rendered(chosen: Format, config: RunConfig, target: Target) -> dict[str, str]:
    """The files by name; raises CannotExpressError with the fields that they cannot say."""
    return written(chosen, config, target)[1]


def written(chosen: Format, config: RunConfig, target: Target) -> tuple[Emitted, dict[str, str]]:
    """What the format says, and the files by name; raises as `rendered` does."""
    if chosen.emit is None:
        raise InputError(f"{chosen.title} is read, not written", field="format")
    config = config.model_copy(update={"model": _loadable(config.model), "lora_targets": spelled_targets(config)})
    version = target.version or load_vocabulary(chosen.vocabulary).version
    emitted = chosen.emit(config, target)
    if target.version:
        main = for_release(emitted.main, load_vocabulary(chosen.vocabulary), target.version)
        emitted = replace(emitted, main=main)
    files = _files(emitted, f"{chosen.title} {version}")
    lost = {field: getattr(config, field) for field in _lost(chosen, config, target, files)}
    if lost:
        raise CannotExpressError(chosen.title, lost)
    return emitted, files


def _loadable(model: str) -> str:
    """A model as a framework loads it: by hub id, or from a folder that does not depend on where it is started."""
    try:
        local = user_path(model)
        return str(local.resolve()) if local.exists() else hub_id(model)
    except (OSError, ValueError, RuntimeError):  # no name of a file
        return hub_id(model)


def spelled_targets(config: RunConfig) -> str:
    """``qv`` as the names that the model's modules have; other targets, and those of an unknown model, as they are."""
    if "qv" not in config.target_names:
        return config.lora_targets
    try:
        return ",".join(target_modules(load_model(config.model), config))
    except InputError:
        return config.lora_targets


def _files(emitted: Emitted, what: str) -> dict[str, str]:
    title = f"Written by ftplan {__version__} for {what}."
    found: dict[str, str] = {}
    if emitted.main_name:
        found[emitted.main_name] = _text(emitted.main_name, emitted.main, title)
    if emitted.deepspeed is not None:
        found[DEEPSPEED_FILE] = _text(DEEPSPEED_FILE, emitted.deepspeed, title)
    if emitted.accelerate is not None:
        found[ACCELERATE_FILE] = _text(ACCELERATE_FILE, emitted.accelerate, title)
    found[LAUNCH_FILE] = _script(emitted, title)
    return found


def _text(name: str, content: Mapping[str, Any], title: str) -> str:
    if name.endswith(".json"):
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return as_yaml(content, title)


def as_yaml(content: Mapping[str, Any], *comments: str) -> str:
    """``content`` as YAML, under lines of comment."""
    head = "".join(f"# {comment}\n" for comment in comments)
    return head + yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 reads them as such: 1e-05 is text to it, 1.0e-05 a number.

    Text of several lines is written as such, control characters as escapes: some of them PyYAML reads back as blanks.
    """


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None
    if not value.replace("\n", "").isprintable():
        style = '"'
    elif "\n" in value:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _string)


def _script(emitted: Emitted, title: str) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"# {title}",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        *(f"export {name}={shlex.quote(value)}" for name, value in emitted.environment.items()),
        "exec " + " ".join(shlex.quote(word) for word in emitted.command) + ' "$@"',
    ]
    return "\n".join(lines) + "\n"


def _lost(chosen: Format, config: RunConfig, target: Target, files: Mapping[str, str]) -> list[str]:
    """The fields that the files do not say, or say otherwise."""
    said = read_back(chosen, target, files)
    ignored = _without_effect(config)
    if chosen.name in PARTIAL:
        return [field for field, value in said.items() if field not in ignored and getattr(config, field) != value]
    try:
        back = RunConfig.model_validate(said)
    except ValueError:
        return sorted(said.keys() ^ set(RunConfig.model_fields)) or ["model"]
    fields = RunConfig.model_fields
    return [
        each
        for each in fields
        if each not in ignored and _meant(each, getattr(back, each)) != _meant(each, getattr(config, each))
    ]


_SAME_OPTIMIZER: Final = {"adamw_8bit": "adamw_bnb_8bit", "paged_adamw": "paged_adamw_32bit"}


def _meant(field: str, value: Any) -> Any:
    """A value without what is only its spelling: the order of LoRA's targets, an optimizer's second name."""
    if field == "lora_targets":
        return frozenset(("q_proj", "v_proj") if value == "qv" else value.split(","))
    return _SAME_OPTIMIZER.get(value, value) if field == "optimizer" else value


def _without_effect(config: RunConfig) -> frozenset[str]:
    """Fields that mean nothing for this method, so that no file has to say them."""
    none: set[str] = set()
    if not config.trains_adapters:
        none |= {"adapter_dtype"}
    if not config.trains_lora:
        none |= {"lora_rank", "lora_alpha", "lora_targets", "lora_dropout"}
    if not config.trains_prompts:
        none |= {"adapter_len", "adapter_layers"}
    if config.quantization == "none":
        none |= {"double_quantization", "prepare_kbit"}
    if config.accumulation == 1:
        none |= {"sync_each_batch"}
    return frozenset(none)


def read_back(chosen: Format, target: Target, files: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `RunConfig` that ``files`` say, read as `ftplan check` would read them."""
    texts = {_FOLDER / name: text for name, text in files.items()}
    source = opened([str(_FOLDER / LAUNCH_FILE)], Files(texts, closed=True), chosen.name)
    source = replace(source, given=replace(source.given, version=target.version))
    said = dict(source.understood(target.ranks).fields)
    said.setdefault("sharding", "ddp" if target.ranks > 1 else "none")
    if chosen.name in PARTIAL:
        said = {name: value for name, value in said.items() if name not in PARTIAL[chosen.name]}
    return {name: value for name, value in said.items() if name in RunConfig.model_fields}


def settings_files(emitted: Emitted, what: str) -> dict[str, str]:
    """The files of ``emitted`` by name, without the script that starts it."""
    return {name: text for name, text in _files(emitted, what).items() if name != LAUNCH_FILE}
