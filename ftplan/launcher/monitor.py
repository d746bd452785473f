"""Follows ``metrics.jsonl`` while a run appends to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftplan.launcher.events import Event, from_line


class LineReader:
    """Reads the lines appended to a file since the last look.

    Args:
        path: the file; it may not exist yet.
        offset: the byte to start at: what an earlier attempt wrote before it is not read again.

    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._partial = b""

    def read(self) -> list[bytes]:
        """The lines completed since the last call; one that is still being written is kept for the next."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(chunk)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        return lines


class Monitor:
    """Reads the events appended to a file since the last look; the arguments are `LineReader`'s."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._lines = LineReader(path, offset)
        self.unreadable_lines = 0

    def read(self) -> Iterator[Event]:
        """The events of the lines completed since the last call, in order.

        A line that is not an event (a process was killed in the middle of one) is skipped and counted in
        ``unreadable_lines``.
        """
        for line in self._lines.read():
            event = _parse(line)
            if event is not None:
                yield event
            elif line.strip():
                self.unreadable_lines += 1


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
