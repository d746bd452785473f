"""Asks torch about itself in a process of its own, because the import takes seconds and hundreds of megabytes."""

from __future__ import annotations

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
        log, answer = Path(folder, "log.txt"), Path(folder, "answer.json")
        with Child([sys.executable, "-m", MODULE, *modules], {}, log, answer) as child:
            outcome = child.wait(LIMIT_SECONDS)
        told, last = answer.read_bytes(), diagnosis.last_line(log)
    if outcome is None:
        return None, f"it did not answer within {LIMIT_SECONDS:.0f} s"
    if not outcome.ok:
        return None, last or f"its process ended with {outcome.exit_code or outcome.signal}"
    try:
        return from_json(Torch, told), ""
    except ValueError:
        return None, f"its answer cannot be read: {told[:80]!r}"
