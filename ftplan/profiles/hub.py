"""The hub: where its cache, its login and its address are, and the ``config.json`` of a repository.

Of a repository nothing else is read: from the local cache, or over the network.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import user_path

_TIMEOUT_SECONDS: Final = 10.0
_MAX_BYTES: Final = 8 * 1024 * 1024
_TRUE: Final = frozenset({"1", "on", "yes", "true"})


class HubError(Exception):
    """What was asked for did not come; ``code`` is the HTTP status, None where the hub could not be asked."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


def hub_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of huggingface_hub: ``HF_HOME``, or ``huggingface`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _path(environ.get("HF_HOME") or f"{base}/huggingface")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads: ``HF_HUB_CACHE``, ``HUGGINGFACE_HUB_CACHE``, or in `hub_home`."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _path(named) if named else hub_home() / "hub"


def token_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where ``hf auth login`` keeps the token: ``HF_TOKEN_PATH``, or in `hub_home`."""
    named = environ.get("HF_TOKEN_PATH")
    return _path(named) if named else hub_home(environ) / "token"


def token() -> str:
    """The user's token: ``HF_TOKEN``, ``HUGGING_FACE_HUB_TOKEN``, or that of ``hf auth login``; empty without one."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if given := os.environ.get(name, "").strip():
            return given
    try:
        return token_file().read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def address(path: str) -> str:
    """The URL of ``path`` on the hub, or on what ``HF_ENDPOINT`` names."""
    return f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{path}"


def fetch(url: str) -> bytes:
    """What the hub answers at ``url``, its first 8 MiB, asked with the user's token; raises HubError."""
    if not url.startswith(("https://", "http://")):
        raise HubError(f"HF_ENDPOINT is no web address: {url}")
    request = urllib.request.Request(url, headers={"User-Agent": "ftplan"})  # noqa: S310 (scheme checked above)
    if given := token():
        # Not sent on to another host if the hub redirects.
        request.add_unredirected_header("Authorization", f"Bearer {given}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            body: bytes = answer.read(_MAX_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise HubError(f"the hub answered {error.code}", error.code) from error
    except (OSError, ValueError) as error:
        raise HubError(f"the hub cannot be reached ({getattr(error, 'reason', error)})") from error
    return body


def config_text(repository: str) -> tuple[str, str]:
    """Return the text of ``repository``'s config.json, and where it came from.

    The cache comes first, so that a model that was ever downloaded works offline. Its folders, the token and the
    address are those of huggingface_hub; ``HF_HUB_OFFLINE`` rules the network out.

    Raises `InputError` with the reason if it is neither cached nor could be fetched.
    """
    cached = cached_config(repository)
    if cached is not None:
        return _read(cached), str(cached)
    if is_offline():
        raise InputError("HF_HUB_OFFLINE is set and the model is not in the local cache", field="model")
    url = address(f"{repository}/resolve/main/config.json")
    try:
        return fetch(url).decode("utf-8", errors="replace"), url
    except HubError as error:
        raise InputError(_reason(error, repository), field="model") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}", field="model") from error


def is_offline() -> bool:
    """Whether the user has ruled the network out."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def cached_config(repository: str) -> Path | None:
    """Return the config.json of the cached snapshot: the one ``main`` points to, or else the newest."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    with suppress(OSError):  # a name may be too long for a folder
        main = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip() / "config.json"
        if main.is_file():
            return main
    with suppress(OSError):
        found = [path for path in folder.glob("snapshots/*/config.json") if path.is_file()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    return None


def _reason(error: HubError, repository: str) -> str:
    if error.code in (401, 403):
        return f"the hub does not show {repository}: it does not exist, or it is gated and HF_TOKEN is not set"
    if error.code == 404:
        return f"the hub has no config.json for {repository}"
    return f"{error} for {repository}" if error.code is not None else str(error)


def _path(text: str) -> Path:
    return user_path(os.path.expandvars(text))
