"""Consoles, and numbers as people read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from shutil import get_terminal_size
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.text import Text

from ftplan.units import GIB, MIB

MAX_WIDTH = 110


@cache
def out() -> Console:
    """Standard output: no wider than a page, plain text when piped."""
    console = _Output(highlight=False, color_system=_colours())
    if console.is_dumb_terminal:
        console.width = get_terminal_size().columns  # rich takes it for 80
    if (not console.file.isatty() and "COLUMNS" not in os.environ) or console.width > MAX_WIDTH:
        console.width = MAX_WIDTH
    return console


def _colours() -> Literal["auto"] | None:
    """No styles at all where none are wanted: rich itself would keep bold and dim."""
    return None if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else "auto"


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """The reader of a pipe has left (`ftplan … | head`): that is no failure of ours."""
        raise BrokenPipeError


@cache
def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, color_system=_colours())


@cache
def _nowhere() -> Console:
    return Console(stderr=True, quiet=True)


class _Manners:
    """Whether ``--quiet`` was asked for."""

    quiet = False


def hush() -> Callable[[], None]:
    """Leave progress and notes out from now on, until what is returned is called."""
    _Manners.quiet = True
    return lambda: setattr(_Manners, "quiet", False)


def aside() -> Console:
    """Standard error for progress and notes, which ``--quiet`` leaves out; warnings and errors go to `err`."""
    return _nowhere() if _Manners.quiet else err()


def note(text: str) -> None:
    """One line beside the answer."""
    aside().print(words(text), soft_wrap=True)


def is_live() -> bool:
    """Whether progress can be shown in place; a pipe cannot, even where it is to have colours."""
    return not _Manners.quiet and err().file.isatty() and not err().is_dumb_terminal


class SignOfLife:
    """A spinner on stderr while something goes on, on a terminal only."""

    def __init__(self, text: str) -> None:
        self._status = err().status(text, spinner="dots" if "utf" in err().encoding else "line")

    def __enter__(self) -> Self:
        if is_live():
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._status.stop()


def plain(text: str) -> str:
    """``text`` with control characters spelled out: a name must not send escape codes to the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def words(*parts: str | tuple[str, str], style: str = "") -> Text:
    """Text of strings and (string, style) pairs; what a user wrote is neither markup nor control codes."""
    pairs = (part if isinstance(part, tuple) else (part, "") for part in parts)
    return Text.assemble(*((plain(text), part_style) for text, part_style in pairs), style=style)


def print_error(message: str, hint: str) -> None:
    """``error:`` and ``hint:`` lines on stderr, readable without colour; a hint stays whole, to be copied."""
    console = err()
    console.print(words(("error: ", "bold red"), message), soft_wrap=not console.file.isatty())
    if hint:
        console.print(words(("hint: ", "bold cyan"), hint), soft_wrap=True)


def size(size_bytes: int | float) -> str:
    """Bytes in GiB, or MiB below a tenth of one."""
    if abs(size_bytes) < GIB / 10:
        return f"{size_bytes / MIB:.1f} MiB"
    return f"{size_bytes / GIB:.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def off(predicted: float | None, measured: float) -> str:
    """By how much a prediction is off: +3.9% where it was too high."""
    if predicted is None or not measured:
        return ""
    return f"{predicted / measured - 1:+.1%} off"


def percent(part: float) -> str:
    """A part of 1 in percent."""
    return f"{part:.1%}"


def count(number: int) -> str:
    """A count of parameters: 7.72 B, 40.4 M."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)


def number(value: float) -> str:
    """Three digits, or all before the point: 24.6, 3,350."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bar(part: float, width: int) -> str:
    """A bar of ``part`` (0 to 1) of ``width`` characters, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
