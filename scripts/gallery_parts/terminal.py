"""A command in a real pseudo-terminal, and what its screen shows after what it wrote."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

LINES: Final = 40
TOKENS: Final = re.compile(
    r"\x1b\[(?P<private>\?)?(?P<numbers>[\d;]*)(?P<kind>[A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|(?P<char>[^\x1b])",
    re.DOTALL,
)
"""A control sequence, an operating system command (a title, a link), or one character."""
REFRESH: Final = re.compile(r"(?=\r\x1b\[2K)")
"""Where rich begins to draw a live display anew: before it every line is whole."""

Cell = tuple[str, str]
"""A character, and the control sequences that colour it."""


class Screen:
    """Lines of cells and a cursor, as a terminal ``columns`` wide has them. Its height is without limit."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[Cell]] = [[]]
        self._row = self._column = 0
        self._style = ""

    def feed(self, text: str) -> None:
        """What a program writes. Raises ValueError for a control sequence that this terminal has not learnt."""
        end = 0
        for found in TOKENS.finditer(text):
            if found.start() != end:
                break
            end = found.end()
            if found["kind"] and not found["private"]:  # private modes hide the cursor and the like
                self._control(found["kind"], found["numbers"])
            elif found["char"]:
                self._character(found["char"])
        if end != len(text):
            raise ValueError(f"unknown control sequence: {text[end : end + 20]!r}")

    def ansi(self) -> str:
        """What is to be seen, as lines of text with colours."""
        return "\n".join(_coloured(line) for line in self._lines).rstrip("\n")

    def text(self) -> str:
        """What is to be seen, without colours."""
        return "\n".join("".join(char for char, _ in line).rstrip() for line in self._lines).rstrip("\n")

    def _character(self, char: str) -> None:
        if char == "\n":
            self._move(self._row + 1)
        elif char == "\r":
            self._column = 0
        elif char == "\b":
            self._column = max(0, self._column - 1)
        elif char == "\t":
            self._column = min(self._columns - 1, (self._column // 8 + 1) * 8)
        elif char.isprintable():
            self._put(char)
        elif char != "\a":
            raise ValueError(f"unknown control character: {char!r}")

    def _put(self, char: str) -> None:
        if unicodedata.combining(char):
            raise ValueError(f"combining character: {char!r}")
        width = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if self._column + width > self._columns:
            self._move(self._row + 1)
            self._column = 0
        line = self._lines[self._row]
        line.extend([(" ", "")] * (self._column + width - len(line)))
        line[self._column : self._column + width] = [(char, self._style), *[("", self._style)] * (width - 1)]
        self._column += width

    def _move(self, row: int) -> None:
        self._row = max(0, row)
        self._lines.extend([] for _ in range(self._row + 1 - len(self._lines)))

    def _control(self, kind: str, numbers: str) -> None:
        first = int(numbers.split(";")[0] or 0) if numbers else 0
        if kind == "m":
            reset = numbers in ("", "0") or numbers.startswith("0;")
            self._style = "" if reset else self._style
            self._style += "" if numbers in ("", "0") else f"\x1b[{numbers}m"
        elif kind in "AB":
            self._move(self._row + (first or 1) * (1 if kind == "B" else -1))
        elif kind in "CD":
            step = (first or 1) * (1 if kind == "C" else -1)
            self._column = min(self._columns - 1, max(0, self._column + step))
        elif kind == "G":
            self._column = max(0, first - 1)
        elif kind == "K":
            self._erase(first)
        elif kind == "J" and first == 0:
            del self._lines[self._row + 1 :]
            self._erase(0)
        else:
            raise ValueError(f"unknown control sequence: {numbers}{kind}")

    def _erase(self, what: int) -> None:
        """Of the line: 0 from the cursor on, 1 up to it, 2 all."""
        line = self._lines[self._row]
        if what in (0, 2):
            del line[self._column if what == 0 else 0 :]
        else:
            line[: self._column + 1] = [(" ", "")] * min(len(line), self._column + 1)


def _coloured(line: list[Cell]) -> str:
    while line and line[-1] == (" ", ""):
        line = line[:-1]
    style, parts = "", []
    for char, wanted in line:
        if wanted != style:
            parts.append(("\x1b[0m" if style else "") + wanted)
            style = wanted
        parts.append(char)
    return "".join(parts) + ("\x1b[0m" if style else "")


def last_screen(written: str, columns: int) -> Screen:
    """The screen when the command has ended."""
    screen = Screen(columns)
    screen.feed(written)
    return screen


def screen_with(written: str, columns: int, pattern: str) -> Screen:
    """The first whole frame of a live display that shows ``pattern``; raises ValueError where none does."""
    screen = Screen(columns)
    for piece in REFRESH.split(written):
        screen.feed(piece)
        if re.search(pattern, screen.text()):
            return screen
    raise ValueError(f"no frame shows {pattern!r}; the last one is\n{screen.text()}")


def run(
    command: str, folder: Path, environment: Mapping[str, str], columns: int, code: int = 0, limit_seconds: float = 200
) -> str:
    """Run ``command`` in ``folder`` in a pseudo-terminal of its own; what it wrote, colours and all.

    Raises RuntimeError where it ends with another exit code than ``code``, or not in time.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    sized = {**environment, "COLUMNS": str(columns), "LINES": str(LINES), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        shlex.split(command), cwd=folder, env=sized, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        written = b"".join(_written(ours, limit_seconds)).decode()
        ended = process.wait(timeout=10)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        process.kill()
        process.wait()
        raise RuntimeError(f"{command} did not end in {limit_seconds:.0f} s") from error
    finally:
        os.close(ours)
    if ended != code:
        raise RuntimeError(f"{command} ended with {ended}, not {code}:\n{written[-2000:]}")
    return written


def _written(terminal: int, limit_seconds: float) -> Iterator[bytes]:
    """What comes from the pseudo-terminal until the last process has left it."""
    end = time.monotonic() + limit_seconds
    while (left := end - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        try:
            data = os.read(terminal, 65536)
        except OSError as error:
            if error.errno == errno.EIO:  # how Linux says that nobody holds the other side
                return
            raise
        if not data:
            return
        yield data
    raise TimeoutError
