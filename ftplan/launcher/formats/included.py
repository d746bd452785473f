"""Mappings among a trainer's settings: in files of their own, as JSON on a command line, changed by dotted keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.settings import FALSE, Setting, Settings, document_settings
from ftplan.profiles.frameworks import Vocabulary
from ftplan.verdicts import Place

FROM_FILES: Final = ("fsdp_config", "accelerator_config")
"""Settings that may name a file with the mapping (transformers 5.23 training_args.py)."""


def whole(given: Given, known: Vocabulary) -> Settings:
    """The settings with every mapping in its place: those of files, then what dotted keys say of them."""
    settings = given.settings
    for key in FROM_FILES:
        settings = settings.replaced(_included(settings, key, given))
    return _folded(settings, known)


def _included(settings: Settings, key: str, given: Given) -> dict[str, Setting]:
    """The mapping that ``key`` names, and its leaves where they stand; nothing if it is no name."""
    named = settings.value(key)
    if not isinstance(named, str) or named.strip().lower() in FALSE:
        return {}
    place = settings.place(key)
    if named.lstrip().startswith("{"):
        return {key: replace(settings[key], value=from_json(named, place))}
    path = given.files.find(named, given.base)
    document = given.files.document(path, asked_by=place.file or "the command line")
    inside = document_settings(document, nested=True)
    leaves = {f"{key}.{name}": replace(each, key=f"{key}.{name}") for name, each in inside.items()}
    stated = {name: each for name, each in settings.items() if name in leaves}
    return {key: replace(settings[key], value=document.data), **leaves, **stated}


def from_json(text: str, place: Place) -> Any:
    """A mapping as an option of a command line has it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = place.file or "the command line"
        raise ConfigFileError(f"{where}: {text[:40]!r} is no JSON", file=place.file, line=place.line) from error


def _folded(settings: Settings, known: Vocabulary) -> Settings:
    """``settings`` with what dotted keys say inside of the mappings, too; a vocabulary's own dotted keys stay."""
    parents: dict[str, Any] = {}
    dropped = set()
    for key, each in settings.items():
        top, *path = key.split(".")
        opens = any(name.startswith(f"{top}.") for name in known.defaults)
        inside = parents.get(top, settings.value(top))
        is_mapping = isinstance(inside, Mapping) or (inside is None and opens and top in known.defaults)
        if not path or each.unresolved or not is_mapping:
            continue
        parents[top] = _with(inside or {}, path, each.value)
        if not opens:
            dropped.add(key)
    kept = Settings({key: each for key, each in settings.items() if key not in dropped})
    folded = {
        top: replace(settings[top], value=value) if top in settings else Setting(top, value, _place(settings, top))
        for top, value in parents.items()
    }
    # What a mapping holds is under its leaves that stand beside it, which know their places.
    return Settings(folded).replaced({key: each for key, each in kept.items() if key not in folded})


def _place(settings: Settings, top: str) -> Place:
    return next(each.place for key, each in settings.items() if key.startswith(f"{top}."))


def _with(inside: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {**inside, first: value}
    below = inside.get(first)
    return {**inside, first: _with(below if isinstance(below, Mapping) else {}, rest, value)}
