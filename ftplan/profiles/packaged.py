"""Reading the packaged data files; a path is enough, and importlib.resources would cost start-up ten milliseconds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = Path(__file__).with_name("data")


@cache
def packaged_json(name: str) -> dict[str, Any]:
    """Return the JSON object in ``data/<name>``; the same object each time, so do not change it."""
    data: dict[str, Any] = json.loads((_FOLDER / name).read_text("utf-8"))
    return data
