"""Appends events to ``metrics.jsonl``, and results of trials to theirs."""

from __future__ import annotations

import os
from pathlib import Path

from ftplan.launcher.events import Event, to_line


class Reporter:
    """Writes each line with one ``write`` to a file opened for appending, so that ranks do not cut into each other."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def report(self, event: Event) -> None:
        """Append ``event``."""
        self.write(to_line(event))

    def write(self, line: bytes) -> None:
        """Append ``line``, which ends in a newline."""
        os.write(self._descriptor, line)
