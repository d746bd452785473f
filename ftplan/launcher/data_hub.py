"""Whether a data set of the hub can be had, before a training process finds out: in the local cache, or online."""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Final

from ftplan.errors import DataError
from ftplan.profiles.hub import is_offline

_TIMEOUT_SECONDS: Final = 10.0
_HINT: Final = "give a local JSON or JSON Lines file, or go online once: data sets of the hub are then cached"


def check_reachable(name: str) -> None:
    """Raise DataError if the data set ``name`` is not cached and the hub cannot be asked, or does not have it.

    Environment as for huggingface_hub: ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_DATASETS_CACHE``, ``HF_HUB_OFFLINE``,
    ``HF_DATASETS_OFFLINE``, ``HF_ENDPOINT``, ``HF_TOKEN``.
    """
    if is_cached(name):
        return
    if is_offline() or os.environ.get("HF_DATASETS_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        raise _unavailable(name, "the environment rules the network out (HF_HUB_OFFLINE)")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise _unavailable(name, f"HF_ENDPOINT is no web address: {endpoint}")
    url = f"{endpoint}/api/datasets/{urllib.parse.quote(name)}"
    request = urllib.request.Request(url, headers={"User-Agent": "ftplan"})  # noqa: S310 (scheme checked above)
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        gone = error.code in (401, 403, 404)
        reason = "it does not exist there, or is not public" if gone else f"the hub answered {error.code}"
        raise _unavailable(name, reason) from error
    except (OSError, ValueError) as error:
        reason = f"the hub cannot be reached ({getattr(error, 'reason', error)})"
        raise _unavailable(name, reason) from error


def is_cached(name: str) -> bool:
    """Whether anything of the data set was ever downloaded here."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    flat = name.replace("/", "___")
    return (hub / f"datasets--{name.replace('/', '--')}").is_dir() or (prepared / flat).is_dir()


def _unavailable(name: str, reason: str) -> DataError:
    message = f"{name} is no file here, and as a data set of the hub it cannot be had: {reason}"
    return DataError(message, hint=_HINT, field="data")
