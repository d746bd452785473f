"""Appends events to ``metrics.jsonl``, and results of trials to theirs."""

from __future__ import annotations

import os
from pathlib import Path

from ftplan.launcher.events import Event, to_line


class Reporter:
    """Writes each line with one ``write`` to a file opened for appending, so that ranks do not cut into each other."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)

    def start_on_new_line(self) -> None:
        """End the half line a killed attempt may have left, which would swallow the next event."""
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")

    def report(self, event: Event) -> None:
        """Append ``event``."""
        self.write(to_line(event))

    def write(self, line: bytes) -> None:
        """Append ``line``, which ends in a newline."""
        os.write(self._descriptor, line)
