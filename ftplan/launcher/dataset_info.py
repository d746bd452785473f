"""LLaMA-Factory's ``dataset_info.json``: which data sets it describes, and each as a `DescribedSet`.

Semantics: its ``data/parser.py`` and ``data/loader.py`` (0.9.6.dev0). Where an entry has ``columns`` (or ``tags``),
those it leaves out are absent, not the defaults. A hub id goes before a file. What this project does not train on, or
would have to run code for, is refused with the reason.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ftplan.errors import DataError, InputError, UnknownNameError
from ftplan.launcher.job import DescribedSet

FILE_NAME: Final = "dataset_info.json"
FORMATS: Final = ("alpaca", "sharegpt", "openai")
SUFFIXES: Final = (".json", ".jsonl")

_TEXT_COLUMNS: Final = ("prompt", "query", "response", "history", "system", "messages")
_TAGS: Final = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
_TOOL_TAGS: Final = ("observation_tag", "function_tag")
_REFUSED_COLUMNS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("images", "videos", "audios"), "only text is trained on"),
    **dict.fromkeys(("chosen", "rejected", "kto_tag"), "it holds preferences, and ftplan trains on examples"),
    "tools": "calls of tools are not trained on",
}
_REFUSED_ORIGINS: Final[Mapping[str, str]] = {
    "ms_hub_url": "it is on ModelScope, which ftplan does not read",
    "om_hub_url": "it is on Modelers, which ftplan does not read",
    "script_url": "it is a loading script, and ftplan runs no code that comes with data",
    "cloud_file_name": "it is in cloud storage, which ftplan does not read",
}
_KEYS: Final = (
    *("hf_hub_url", *_REFUSED_ORIGINS, "file_name", "formatting", "ranking", "subset", "split", "folder"),
    *("num_samples", "columns", "tags"),
)


def info_file(path: Path) -> Path | None:
    """The description file that ``path`` is or holds, None if it neither is one nor a folder with one."""
    if path.is_dir():
        path = path / FILE_NAME
    return path if path.name == FILE_NAME and path.is_file() else None


def described_sets(file: Path, names: Sequence[str]) -> tuple[DescribedSet, ...]:
    """The sets of those ``names``.

    Raises UnknownNameError with the valid ones, DataError for a file or an entry that cannot be used.
    """
    entries = _entries(file)
    return tuple(_described(name, _entry(entries, name, file), file.parent) for name in names)


def set_names(file: Path) -> tuple[str, ...]:
    """The names of the sets that ``file`` describes; raises DataError if it cannot be read."""
    return tuple(_entries(file))


def _entries(file: Path) -> Mapping[str, Any]:
    try:
        entries = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", field="data") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}", hint="an object of data sets by name", field="data") from error
    if not isinstance(entries, dict):
        raise DataError(f"{file} holds no object", hint="an object of data sets by name", field="data")
    return entries


def _entry(entries: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=4)
        hint = f"did you mean {', '.join(close)}?" if close else f"{file} describes: {', '.join(entries)}"
        raise UnknownNameError("data set", name, entries, field="dataset", hint=hint)
    entry = entries[name]
    if not isinstance(entry, dict):
        raise _refused(name, f"its description is no object, but {json.dumps(entry):.40}")
    for key in entry:
        # What is not known is ignored, as LLaMA-Factory does; what is misspelt would be, too.
        if key not in _KEYS and (close := difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8)):
            raise _refused(name, f"unknown key {key!r}", hint=f"did you mean {close[0]}?")
    return entry


def _described(name: str, entry: Mapping[str, Any], folder: Path) -> DescribedSet:
    if entry.get("ranking"):
        raise _refused(name, "it is ranked: it holds preferences, and ftplan trains on examples")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in FORMATS:
        raise _refused(name, f"unknown formatting {formatting!r}", hint=f"valid: {', '.join(FORMATS)}")
    fields = {"name": name, "formatting": formatting, "num_samples": entry.get("num_samples")}
    fields |= _origin(name, entry, folder) | _columns(name, entry, formatting) | _tags(name, entry)
    try:
        return DescribedSet.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(name, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _origin(name: str, entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    split = entry.get("split", "train")
    if "hf_hub_url" in entry:
        places = {"hub_subset": entry.get("subset"), "hub_split": split, "hub_folder": entry.get("folder")}
        return {"hub": entry["hf_hub_url"], **places}
    for key, reason in _REFUSED_ORIGINS.items():
        if key in entry:
            raise _refused(name, reason, hint="download it, and describe it by file_name")
    if not isinstance(entry.get("file_name"), str):
        raise _refused(name, "it has neither hf_hub_url nor file_name")
    if split != "train":
        raise _refused(name, f"split {split!r}: local files are all of the split 'train'")
    return {"paths": _files(name, folder / entry["file_name"])}


def _files(name: str, path: Path) -> tuple[str, ...]:
    """The file, or those of the folder in the order of their names."""
    if not path.exists():
        raise _refused(name, f"{path} does not exist")
    found = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
    if not found:
        raise _refused(name, f"{path} is empty")
    for file in found:
        if file.suffix.lower() not in SUFFIXES:
            raise _refused(name, f"{file} is not read", hint=f"ftplan reads {', '.join(SUFFIXES)}")
    return tuple(str(file) for file in found)


def _columns(name: str, entry: Mapping[str, Any], formatting: str) -> dict[str, Any]:
    if "columns" not in entry:
        return {}
    given = _object(name, entry, "columns", (*_TEXT_COLUMNS, *_REFUSED_COLUMNS))
    for column, reason in _REFUSED_COLUMNS.items():
        if given.get(column) is not None:
            raise _refused(name, f"it has a column for {column}: {reason}")
    needed = "prompt or query" if formatting == "alpaca" else "messages"
    if all(given.get(column) is None for column in needed.split(" or ")):
        raise _refused(name, f"its columns name no {needed}", hint="where there are columns, no default holds")
    return {column: given.get(column) for column in _TEXT_COLUMNS}


def _tags(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if "tags" not in entry:
        return {}
    given = _object(name, entry, "tags", (*_TAGS, *_TOOL_TAGS))
    for tag in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
        if given.get(tag) is None:
            raise _refused(name, f"its tags name no {tag}", hint="where there are tags, no default holds")
    return {tag: given.get(tag) for tag in _TAGS}


def _object(name: str, entry: Mapping[str, Any], key: str, valid: Sequence[str]) -> Mapping[str, Any]:
    given = entry[key]
    if not isinstance(given, dict):
        raise _refused(name, f"{key} is no object")
    unknown = [one for one in given if one not in valid]
    if unknown:
        raise _refused(name, f"unknown {key}: {', '.join(unknown)}", hint=f"valid: {', '.join(valid)}")
    return given


def _refused(name: str, why: str, hint: str = "") -> InputError:
    return DataError(f"data set {name!r}: {why}", hint=hint or "choose another with --dataset", field="dataset")
