"""Asks torch about itself in a process of its own, because the import takes seconds and hundreds of megabytes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ftplan.launcher import diagnosis
from ftplan.launcher.preflight.facts import Torch
from ftplan.launcher.process import Child
from ftplan.results import from_json

MODULE: Final = "ftplan.launcher.probe.environment"
LIMIT_SECONDS: Final = 90.0
"""For the import of torch and of what is asked for on a slow disk."""


def ask_torch(modules: Sequence[str] = ()) -> tuple[Torch | None, str]:
    """What torch says, and whether each of ``modules`` imports; None and the reason if it does not answer."""
    with tempfile.TemporaryDirectory(prefix="ftplan-doctor-") as folder:
        log = Path(folder, "log.txt")
        with Child([sys.executable, "-m", MODULE, *modules], {}, log) as child:
            outcome = child.wait(LIMIT_SECONDS)
        lines = [line for line in diagnosis.tail(log).splitlines() if line.strip()]
    if outcome is None:
        return None, f"it did not answer within {LIMIT_SECONDS:.0f} s"
    if not outcome.ok:
        return None, lines[-1] if lines else f"its process ended with {outcome.exit_code or outcome.signal}"
    told = next((line for line in reversed(lines) if line.startswith("{")), "")
    try:
        return from_json(Torch, told), ""
    except ValueError:
        return None, f"it said {json.dumps(told[:80])}"
