"""Writing files so that a kill at any moment leaves no half of anything: whole files, and lines appended to one."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final

HASHED_UP_TO_BYTES: Final = 16 * 2**20
"""Of larger files so much is read, in blocks all over them: reading tens of GB again would hold up the training."""
BLOCK_BYTES: Final = 2**20


def user_path(text: str | Path) -> Path:
    """``text`` as a path, with ``~`` as the user's home; the home of a user that nobody knows stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises RuntimeError for such a user)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Put ``content`` at ``path``: after a crash it holds all of the old or all of the new content."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
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


def sampled_sha256(path: Path) -> str:
    """Of all of a file, or of blocks that lie evenly over a large one, its first and last among them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= HASHED_UP_TO_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, blocks = hashlib.sha256(), HASHED_UP_TO_BYTES // BLOCK_BYTES
        for index in range(blocks):
            file.seek(index * (size - BLOCK_BYTES) // (blocks - 1))
            digest.update(file.read(BLOCK_BYTES))
        return digest.hexdigest()


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
