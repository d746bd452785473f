"""The ``config.json`` of a hub repository, and nothing else of it: from the local cache, or over the network."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from ftplan.errors import InputError

_TIMEOUT_SECONDS: Final = 10.0
_MAX_BYTES: Final = 8 * 1024 * 1024
_TRUE: Final = frozenset({"1", "on", "yes", "true"})


def config_text(repository: str) -> tuple[str, str]:
    """Return the text of ``repository``'s config.json, and where it came from.

    The cache comes first, so that a model that was ever downloaded works offline. Environment: ``HF_HOME``,
    ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_TOKEN``, as for huggingface_hub.

    Raises `InputError` with the reason if it is neither cached nor could be fetched.
    """
    cached = cached_config(repository)
    if cached is not None:
        return _read(cached), str(cached)
    if is_offline():
        raise InputError("HF_HUB_OFFLINE is set and the model is not in the local cache", field="model")
    url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{repository}/resolve/main/config.json"
    return _fetch(url, repository), url


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
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{repository.replace('/', '--')}"
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip() / "config.json"
    except OSError:
        main = folder / "missing"
    if main.is_file():
        return main
    found = [path for path in folder.glob("snapshots/*/config.json") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _fetch(url: str, repository: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise InputError(f"HF_ENDPOINT is no web address: {url}", field="model")
    request = urllib.request.Request(url, headers={"User-Agent": "ftplan"})  # noqa: S310 (scheme checked above)
    if token := os.environ.get("HF_TOKEN"):
        # Not sent on to another host if the hub redirects.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            body: bytes = answer.read(_MAX_BYTES)
    except urllib.error.HTTPError as error:
        raise InputError(_http_reason(error.code, repository), field="model") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"its config.json could not be fetched from the hub ({reason})", field="model") from error
    return body.decode("utf-8", errors="replace")


def _http_reason(code: int, repository: str) -> str:
    if code in (401, 403):
        return f"the hub does not show {repository}: it does not exist, or it is gated and HF_TOKEN is not set"
    if code == 404:
        return f"the hub has no config.json for {repository}"
    return f"the hub answered {code} for {repository}"
