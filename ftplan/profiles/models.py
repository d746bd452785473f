"""The model catalogue, and models given as a config file, a folder or a hub id.

What a name means, in this order:

1. a catalogue name in any case (hub id, id of the same shape, alias, slug), unless it is written as a path: a folder
   that happens to be called like a model does not hide it, ``./folder`` reaches the folder;
2. an existing ``config.json`` or a folder that holds one;
3. ``org/name``: the ``config.json`` of that hub repository, from the local cache or from the hub (`profiles.hub`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError, UnknownNameError
from ftplan.files import user_path
from ftplan.profiles.hf_config import profile_from_config
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.packaged import packaged_json

_HUB_ID: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FILE_HINT: Final = "give a config.json or a folder that holds one"
_PATH_HINT: Final = "the path of a config.json, or of a folder with one, works for any model"


@dataclass(frozen=True)
class ModelEntry:
    """One row of the catalogue, for listings. ``total_params`` counts elements, tied weights once."""

    id: str
    aliases: tuple[str, ...]
    same_shape_ids: tuple[str, ...]
    total_params: int
    model_type: str


def load_model(name_or_path: str) -> ModelProfile:
    """Return the profile of a model by catalogue name, path or hub id.

    Raises `UnknownNameError` with the nearest names if no model is called that, `InputError` for a file or an answer of
    the hub that cannot be read, and `ModelConfigError` for a config that does not map to a profile.
    """
    name = name_or_path.strip()
    slug = None if _is_written_as_path(name) else _slugs().get(name.lower())
    if slug:
        return _catalogue_profile(slug)
    path = _existing_path(name)
    if path:
        return _from_path(path, name)
    if _is_written_as_path(name):
        raise InputError(f"{name} does not exist", hint=_FILE_HINT, field="model")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name)
    raise _unknown(name)


def load_hf_config(name_or_path: str) -> Mapping[str, Any]:
    """Return the Hugging Face config of a model, as in its config.json; found and refused as by `load_model`."""
    name = name_or_path.strip()
    slug = None if _is_written_as_path(name) else _slugs().get(name.lower())
    if slug:
        row: Mapping[str, Any] = _rows()[slug]["config"]
        return row
    path = _existing_path(name)
    if path:
        return _parse(*_file_text(path, name))
    if _is_written_as_path(name) or not _HUB_ID.fullmatch(name):
        load_model(name)  # which says what is wrong with it
    return _parse(*_hub_text(name))


def list_models() -> tuple[ModelEntry, ...]:
    """Every model of the catalogue, in its order; no config is mapped."""
    return tuple(
        ModelEntry(
            id=row["id"],
            aliases=tuple(row["aliases"]),
            same_shape_ids=tuple(row.get("same_shape_ids", ())),
            total_params=row["total_params"],
            model_type=row["config"]["model_type"],
        )
        for row in _rows().values()
    )


def is_catalogued(name: str) -> bool:
    """Whether the catalogue has a model of this name, so that neither a disk nor the hub is asked for it."""
    return not _is_written_as_path(name.strip()) and name.strip().lower() in _slugs()


def catalogued_namesake(name: str) -> str | None:
    """The model of the catalogue whose name ends as ``name`` does: that is somebody's copy, or one on a disk."""
    last = name.strip().rstrip("/").rsplit("/", 1)[-1].lower()
    if last in _slugs():
        return last if last != name.strip().lower() else None
    return next((known for known in _slugs() if known.endswith(f"/{last}") and known != name.strip().lower()), None)


def hub_id(name: str) -> str:
    """Return the hub repository a catalogue name stands for: ``Qwen2.5-7B-Instruct`` is not its base model.

    Anything that is not in the catalogue is returned as it is.
    """
    slug = _slugs().get(name.strip().lower())
    if slug is None or _is_written_as_path(name):
        return name
    row = _rows()[slug]
    published: list[str] = [row["id"], *row.get("same_shape_ids", ())]
    wanted = name.strip().lower()
    return next((each for each in published if wanted in (each.lower(), each.lower().split("/")[-1])), published[0])


def _existing_path(name: str) -> Path | None:
    try:
        path = user_path(name)
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, the home of a user who does not exist
        return None


def _is_written_as_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", ".\\")) or name in {".", ".."} or name.endswith((".json", "/"))


@cache
def _rows() -> Mapping[str, Mapping[str, Any]]:
    # One file for all: it parses in about a millisecond, less than opening a second one costs.
    return packaged_json("models.json")


@cache
def _slugs() -> Mapping[str, str]:
    """Every name in lower case, and the row it belongs to."""
    return {name.lower(): slug for slug, row in _rows().items() for name in _names(slug, row)}


def _names(slug: str, row: Mapping[str, Any]) -> Iterator[str]:
    yield from (slug, row["id"], *row["aliases"], *row.get("same_shape_ids", ()))


@cache
def _catalogue_profile(slug: str) -> ModelProfile:
    row = _rows()[slug]
    return profile_from_config(row["config"], id=row["id"], source=row["config_source"])


def _from_path(path: Path, name: str) -> ModelProfile:
    text, source = _file_text(path, name)
    return profile_from_config(_parse(text, source), id=name, source=source)


def _file_text(path: Path, name: str) -> tuple[str, str]:
    """The text of a config.json, given itself or its folder, and where it is."""
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise InputError(f"{name} has no config.json", hint=_FILE_HINT, field="model")
    try:
        return file.read_text(encoding="utf-8"), str(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}", hint=_PATH_HINT, field="model") from error


def _parse(text: str, where: str) -> Mapping[str, object]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "a config.json holds one JSON object"
        raise InputError(f"{where} is not valid JSON: {error}", hint=hint, field="model") from error
    if not isinstance(config, dict):
        hint = "a config.json holds one JSON object"
        raise InputError(f"{where} holds a JSON {type(config).__name__}, not an object", hint=hint, field="model")
    return config


def _from_hub(name: str) -> ModelProfile:
    text, source = _hub_text(name)
    return profile_from_config(_parse(text, source), id=name, source=source)


def _hub_text(name: str) -> tuple[str, str]:
    """The text of a hub repository's config.json, and where it came from."""
    from ftplan.profiles.hub import config_text  # imports the network library, which most commands never need

    try:
        return config_text(name)
    except InputError as error:
        raise _unknown(name, because=error.message) from error


def _unknown(name: str, because: str = "") -> UnknownNameError:
    names = [each for slug, row in _rows().items() for each in _names(slug, row)]
    nearest = UnknownNameError("model", name, names, field="model").hint
    hint = "; ".join(part for part in (because, nearest, _PATH_HINT) if part)
    return UnknownNameError("model", name, names, field="model", hint=hint)
