"""Appends events to ``metrics.jsonl``."""

from __future__ import annotations

import os
from pathlib import Path

from ftplan.launcher.events import Event, to_line


class Reporter:
    """Writes each event with one ``write`` to a file opened for appending, so that ranks do not cut into each other."""

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
        os.write(self._descriptor, to_line(event))
