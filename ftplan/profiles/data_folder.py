"""The user's folders for data and caches, and whether data is kept: all that a plan without calibrations needs of it.

::

    calibration.json    a `Calibration` for each device, driver and torch
    runs.jsonl          a `RecordedRun` a line, in the order they finished
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ftplan.errors import InputError

OTHER_FOLDER: Final = "FTPLAN_DATA names another folder"


def data_folder() -> Path:
    """Where it is kept: ``FTPLAN_DATA``, or ``ftplan`` in the user's data folder; InputError without a home."""
    given, share = os.environ.get("FTPLAN_DATA"), os.environ.get("XDG_DATA_HOME")
    if given:
        return Path(given)
    try:
        return Path(share or Path.home() / ".local/share") / "ftplan"
    except RuntimeError as error:
        raise InputError("no home folder to keep anything in", hint=OTHER_FOLDER, field="calibration") from error


def cache_folder() -> Path:
    """What can be made anew: ``FTPLAN_CACHE``, or ``ftplan`` in the user's cache folder; InputError without a home."""
    given, cache = os.environ.get("FTPLAN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    try:
        return Path(cache or Path.home() / ".cache") / "ftplan"
    except RuntimeError as error:
        raise InputError("no home folder for a cache", hint="FTPLAN_CACHE names a folder", field="cache") from error


def calibration_file() -> Path:
    """Where calibrations are."""
    return data_folder() / "calibration.json"


def runs_file() -> Path:
    """Where recorded runs are."""
    return data_folder() / "runs.jsonl"


def is_anything_kept() -> bool:
    """Whether one of the files is there, readable or not; who has no home has none."""
    try:
        return calibration_file().exists() or runs_file().exists()
    except InputError:
        return False
    except PermissionError as error:
        message = f"cannot read {data_folder()}: {error.strerror}"
        raise InputError(message, hint=OTHER_FOLDER, field="calibration") from error
