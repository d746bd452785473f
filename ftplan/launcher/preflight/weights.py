"""Whether the weights of a run are here, or can be had from the hub."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from typing import Final

from ftplan.launcher.job import Source
from ftplan.launcher.preflight.findings import WEIGHTS, Finding, Status
from ftplan.profiles.hub import HubError, address, fetch, hub_cache, is_offline

PATTERNS: Final = ("snapshots/*/*.safetensors", "snapshots/*/*.bin")
_FIX: Final = "name a folder that holds them by --weights, or try the plan without by --rehearse"


def check_weights(source: Source) -> Iterator[Finding]:
    """Nothing for weights on this machine; else whether the hub has them, which is asked."""
    if source.kind != "hub" or _is_cached(source.location):
        return
    name = source.location
    if is_offline():
        reason = "HF_HUB_OFFLINE rules the network out"
        yield Finding(WEIGHTS, Status.ERROR, f"{name} is not on this machine, and {reason}", _FIX)
        return
    try:
        fetch(address(f"api/models/{urllib.parse.quote(name)}"))
    except HubError as error:
        gone = error.code in (401, 403, 404)
        reason = "the hub does not show it: it does not exist, or a login is needed" if gone else str(error)
        yield Finding(WEIGHTS, Status.ERROR, f"{name} is not on this machine, and {reason}", _FIX)
        return
    yield Finding(WEIGHTS, Status.OK, f"{name} will be downloaded from the hub")


def _is_cached(name: str) -> bool:
    folder = hub_cache() / f"models--{name.replace('/', '--')}"
    return any(next(folder.glob(pattern), None) is not None for pattern in PATTERNS)
