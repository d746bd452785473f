"""Reading a file that somebody else wrote: small, regular, text. Nothing in it is trusted, nothing is executed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.units import KIB

LARGEST_FILE: Final = 256 * KIB
"""Twenty times the longest example of any framework; a file of this size is read in a fraction of a second."""


def read_config(path: Path, *, asked_by: str = "") -> str:
    """The text of a configuration file; raises ConfigFileError for anything that is not one.

    ``asked_by`` names the file that refers to this one. A device, a pipe or a folder is refused before it is opened for
    reading, so that nothing waits for it.
    """
    told = f" (named in {shown(asked_by)})" if asked_by else ""
    try:
        data = _start_of(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise ConfigFileError(f"cannot read {shown(path)}{told}: {reason}", file=str(path)) from error
    if data is None:
        raise ConfigFileError(f"{shown(path)}{told} is no regular file", file=str(path))
    if len(data) > LARGEST_FILE:
        hint = "a configuration file has a few kilobytes; data and checkpoints are not read"
        raise ConfigFileError(
            f"{shown(path)}{told} is larger than {LARGEST_FILE // KIB} KiB", hint=hint, file=str(path)
        )
    return text_of(data, shown(path), told)


def text_of(data: bytes, name: str, told: str = "") -> str:
    """``data`` of the file ``name`` as text with plain line ends; raises ConfigFileError where it is none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"{name}{told} is no UTF-8 text", file=name) from error
    if "\0" in text:
        raise ConfigFileError(f"{name}{told} is no text: it holds a null character", file=name)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _start_of(path: Path) -> bytes | None:
    """The first bytes of a regular file; None for anything else. It is looked at before it is opened, and after."""
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST_FILE + 1)
    finally:
        os.close(descriptor)


def as_in(path: Path, text: str) -> str:
    """``text`` with the line ends and the byte order mark of the file whose place it takes, if there is one."""
    try:
        data = _start_of(path) or b""
    except (OSError, ValueError):
        return text
    mark = "\ufeff" if data.startswith(b"\xef\xbb\xbf") else ""
    return mark + (text.replace("\n", "\r\n") if b"\r\n" in data else text)


def shown(path: Path | str) -> str:
    """``path`` as it may be printed: without control characters, and not endless."""
    text = "".join(char if char.isprintable() else "?" for char in str(path))
    return text if len(text) <= 200 else text[:197] + "..."
