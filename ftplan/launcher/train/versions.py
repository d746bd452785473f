"""Versions of what a run depends on, for its record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed")


def versions() -> dict[str, str]:
    """Installed versions by package, and Python's."""
    return {"python": platform.python_version()} | {name: found for name in PACKAGES if (found := version_of(name))}


def version_of(name: str) -> str | None:
    """The installed version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
