"""What a user names as data: files, sets that a ``dataset_info.json`` describes, or a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ftplan.errors import DataError
from ftplan.launcher import data_hub
from ftplan.launcher.dataset_info import FILE_NAME, SUFFIXES, described_sets, info_file, set_names
from ftplan.launcher.job import DataSource

HUB_ID: Final = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<split>[\w.\[\]:%+-]+))?")
"""``owner/name`` or ``owner/name:split``."""
SHOWN_CHARACTERS: Final = 80


def data_source(given: Sequence[str], names: Sequence[str] = (), **settings: Any) -> DataSource:
    """The data that ``given`` and the ``names`` of described sets stand for; ``settings`` are fields of `DataSource`.

    Raises DataError for what is nowhere to be found, for a description without a name, and the other way round.
    """
    paths = [_path(text) for text in given]
    described = [file for path in paths if (file := info_file(path)) is not None]
    if names:
        return _described(given, described, names, settings)
    if described:
        known = ", ".join(set_names(described[0]))
        hint = f"--dataset NAME, one or more of: {known}"
        raise DataError(f"{described[0]} describes data sets: which of them?", hint=hint, field="dataset")
    hub = [found for text, path in zip(given, paths, strict=True) if (found := _hub_id(text, path)) is not None]
    if not hub:
        return DataSource.model_validate({"paths": tuple(map(str, paths)), **settings})
    if len(given) > 1:
        hint = "give files, or one data set of the hub"
        raise DataError(f"{hub[0]['id']} is no file, and the hub's sets go alone", hint=hint, field="data")
    data_hub.check_reachable(hub[0]["id"])
    return DataSource.model_validate({"hub": hub[0]["id"], "hub_split": hub[0]["split"] or "train", **settings})


def _described(
    given: Sequence[str], described: Sequence[Path], names: Sequence[str], settings: dict[str, Any]
) -> DataSource:
    if len(described) != 1 or len(given) != 1:
        hint = f"--data FOLDER (one with a {FILE_NAME}) --dataset {','.join(names)}"
        raise DataError(f"--dataset needs one {FILE_NAME} as --data", hint=hint, field="data")
    if settings.get("form", "auto") != "auto":
        hint = "leave --data-format out"
        raise DataError(f"{described[0]} says the form of its sets itself", hint=hint, field="data_format")
    source = DataSource.model_validate({"described": described_sets(described[0], names), **settings})
    for one in source.described:
        if one.hub is not None:
            data_hub.check_reachable(one.hub)
    return source


def _path(text: str) -> Path:
    """``text`` as a path, whether or not it is there; raises DataError for what can be none, or cannot be looked at."""
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shown!r} is no file that can be read: {why}", field="data") from error
    return path


def _hub_id(text: str, path: Path) -> re.Match[str] | None:
    """``text`` as an id of the hub, if it can be one and its ``path`` is no file."""
    if path.exists() or path.suffix.lower() in SUFFIXES or (path.parent.is_dir() and path.parent != Path()):
        return None
    return HUB_ID.fullmatch(text)
