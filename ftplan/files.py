"""Writing files so that a kill at any moment leaves no half of anything: whole files, and lines appended to one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Put ``content`` at ``path``: after a crash it holds all of the old or all of the new content."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add ``line`` to the end of ``path`` in one write, one writer after the other.

    A line that a kill cut short stays one of its own: what follows it begins on a new line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, b"\n" * _torn(descriptor) + line.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def end_line(path: Path) -> None:
    """End the half line that a kill may have left in ``path``, which would swallow the next one; makes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, b"\n" * _torn(descriptor))
    finally:
        os.close(descriptor)


def _torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def publish(partial: Path, folder: Path) -> None:
    """Rename ``partial`` to ``folder``: after a crash that has all its files with their content, or does not exist."""
    for path in partial.rglob("*"):
        sync(path)
    sync(partial)
    partial.rename(folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
