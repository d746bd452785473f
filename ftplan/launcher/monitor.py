"""Follows ``metrics.jsonl`` while a run appends to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftplan.launcher.events import Event, from_line


class Monitor:
    """Reads the events appended to a file since the last look.

    Args:
        path: the file; it may not exist yet.
        offset: the byte to start at: what an earlier attempt wrote before it is not reported again.

    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._partial = b""
        self.unreadable_lines = 0

    def read(self) -> Iterator[Event]:
        """The events of the lines completed since the last call, in order.

        A line that is still being written is kept for the next call. A line that is not an event (a process was
        killed in the middle of one) is skipped and counted in ``unreadable_lines``.
        """
        for line in self._lines():
            event = _parse(line)
            if event is not None:
                yield event
            elif line.strip():
                self.unreadable_lines += 1

    def _lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(chunk)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        return lines


def read_all(path: Path) -> list[Event]:
    """Every event of every attempt in ``path``."""
    return list(Monitor(path).read())


def size_of(path: Path) -> int:
    """Bytes of ``path`` now; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _parse(line: bytes) -> Event | None:
    try:
        return from_line(line)
    except ValueError:
        return None
