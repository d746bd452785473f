"""Whether a data set of the hub can be had, before a training process finds out: in the local cache, or online."""

from __future__ import annotations

import os
import urllib.parse
from contextlib import suppress
from pathlib import Path
from typing import Final

from ftplan.errors import DataError
from ftplan.profiles.hub import HubError, address, fetch, hub_cache, hub_home, is_offline

_HINT: Final = "give a local JSON or JSON Lines file, or go online once: data sets of the hub are then cached"


def check_reachable(name: str) -> None:
    """Raise DataError if the data set ``name`` is not cached and the hub cannot be asked, or does not have it.

    The cache, the token and the address are those of huggingface_hub; ``HF_DATASETS_CACHE`` and
    ``HF_DATASETS_OFFLINE`` are heeded beside them.
    """
    if is_cached(name):
        return
    if is_offline() or os.environ.get("HF_DATASETS_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        raise _unavailable(name, "the environment rules the network out (HF_HUB_OFFLINE)")
    try:
        fetch(address(f"api/datasets/{urllib.parse.quote(name)}"))
    except HubError as error:
        gone = error.code in (401, 403, 404)
        raise _unavailable(name, "it does not exist there, or is not public" if gone else str(error)) from error


def is_cached(name: str) -> bool:
    """Whether anything of the data set was ever downloaded here."""
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or hub_home() / "datasets").expanduser()
    folders = (hub_cache() / f"datasets--{name.replace('/', '--')}", prepared / name.replace("/", "___"))
    with suppress(OSError):  # a name may be too long for a folder
        return any(folder.is_dir() for folder in folders)
    return False


def _unavailable(name: str, reason: str) -> DataError:
    message = f"{name} is no file here, and as a data set of the hub it cannot be had: {reason}"
    return DataError(message, hint=_HINT, field="data")
