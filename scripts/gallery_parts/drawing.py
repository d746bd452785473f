"""ANSI text as an SVG that loads nothing, and text that says nothing of this machine."""

from __future__ import annotations

import getpass
import io
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as Xml

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len
from rich.color import blend_rgb
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

FONTS: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
TITLE_FONTS: Final = "system-ui, -apple-system, 'Segoe UI', Arial, sans-serif"
CHARACTER_ASPECT: Final = 0.6
"""Width of a character by its height: that of the fonts above."""
CHARACTER_WIDTH: Final = 20 * CHARACTER_ASPECT
LINE_HEIGHT: Final = 20 * 1.22
LINE_TOP: Final = 1.5
"""As rich's SVGs have them."""
BUTTONS: Final = 80
TITLE_CHARACTER: Final = 10.8
"""Pixels of the window's buttons, and of a letter of its title at most."""
BLOCKS: Final = (
    {"█": (1.0, 1.0)}
    | {char: (eighths / 8, 1.0) for eighths, char in enumerate("▏▎▍▌▋▊▉", start=1)}
    | {char: (1.0, eighths / 8) for eighths, char in enumerate("▁▂▃▄▅▆▇", start=1)}
)
"""Characters of bars and curves: the part of their width and of their height that they fill."""
ANYBODY: Final = ("root", "user", "runner", "ubuntu", "localhost", "docker")
"""Names of users and hosts that tell nothing."""
LOCAL_PATH: Final = re.compile(r"/(?:tmp|home|root|Users|var|private|opt|usr)/\S+")
ELSEWHERE: Final = re.compile(r"@import|@font-face|<script|(?:href|src)\s*=|url\((?!#)", re.IGNORECASE)
"""What makes a browser load something; a clip path's url(#id) does not."""


def svg(ansi: str, title: str, columns: int, name: str) -> str:
    """A picture of a terminal that shows ``ansi``. ``name`` keeps its ids apart from those of other pictures."""
    console = Console(
        record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    text = Text.from_ansi(ansi)
    console.print(_without_blocks(text), soft_wrap=True)
    console.print()  # rich cuts what hangs below the last line
    drawn = console.export_svg(
        title=_fitting(title, columns),
        code_format=_template(),
        font_aspect_ratio=CHARACTER_ASPECT,
        unique_id=f"terminal-{name}",
    )
    # Another font than the one that the picture was measured by is stretched with its bars, not spaced out.
    drawn = drawn.replace("textLength=", 'lengthAdjust="spacingAndGlyphs" textLength=')
    drawn = drawn.replace(
        f'<g class="terminal-{name}-matrix">', f'{_blocks(text)}\n    <g class="terminal-{name}-matrix">'
    )
    return "\n".join(line.rstrip() for line in drawn.splitlines()).rstrip() + "\n"


def _fitting(title: str, columns: int) -> str:
    """``title`` as far as it goes between the window's buttons and its other edge."""
    most = int((columns * CHARACTER_WIDTH - 2 * BUTTONS) / TITLE_CHARACTER)
    return title if len(title) <= most else title[: most - 2] + " …"


def _without_blocks(text: Text) -> Text:
    """``text`` with spaces for the characters that bars are made of."""
    bare = text.copy()
    bare.plain = "".join(" " if char in BLOCKS else char for char in text.plain)
    return bare


def _blocks(text: Text) -> str:
    """Those characters as areas: as letters of a font they would leave hairlines between them."""
    areas: dict[str, list[str]] = {}
    style = Console(color_system="truecolor")
    for row, line in enumerate(text.split("\n", allow_blank=True)):
        column = 0
        for index, char in enumerate(line.plain):
            if char in BLOCKS:
                wide, tall = BLOCKS[char]
                x, y = column * CHARACTER_WIDTH, row * LINE_HEIGHT + LINE_TOP + (1 - tall) * LINE_HEIGHT
                area = f"M{x:g} {y:g}h{wide * CHARACTER_WIDTH:g}v{tall * LINE_HEIGHT:g}h-{wide * CHARACTER_WIDTH:g}z"
                areas.setdefault(_colour(line.get_style_at_offset(style, index)), []).append(area)
            column += cell_len(char)
    return "".join(
        f'<path fill="{colour}" shape-rendering="crispEdges" d="{"".join(parts)}"/>' for colour, parts in areas.items()
    )


def _colour(style: Style) -> str:
    known = style.color and not style.color.is_default
    colour = style.color.get_truecolor(SVG_EXPORT_THEME) if known and style.color else SVG_EXPORT_THEME.foreground_color
    return (blend_rgb(colour, SVG_EXPORT_THEME.background_color, 0.6) if style.dim else colour).hex


def _template() -> str:
    """Rich's, without the fonts that it fetches."""
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = re.sub(r"\s*<!--.*?-->", "", template)
    template = template.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    return template.replace("font-family: arial", f"font-family: {TITLE_FONTS}")


def svg_problems(text: str) -> list[str]:
    """What is wrong with an SVG: it is no XML, or a browser would load something else for it."""
    try:
        Xml.fromstring(text)  # noqa: S314 - written by this script
    except Xml.ParseError as error:
        return [f"no valid XML: {error}"]
    return [f"loads something: {found[0]!r}" for found in ELSEWHERE.finditer(text)]


def neutral(text: str, folder: Path) -> str:
    """``text`` with paths in ``folder`` as a user in it would write them."""
    for path in sorted({str(folder), str(folder.resolve())}, key=len, reverse=True):
        text = text.replace(f"{path}/", "").replace(path, ".")
    return text


def machine_words() -> tuple[str, ...]:
    """Names of this machine and of who is logged in."""
    host = socket.gethostname()
    names = {host, host.split(".")[0], getpass.getuser()}
    return tuple(sorted(name for name in names if name and name.lower() not in ANYBODY))


def refuse_local(text: str, where: str, words: Iterable[str] | None = None) -> None:
    """Raise ValueError where ``text`` tells something of this machine, broken over two lines or not."""
    names = machine_words() if words is None else words
    patterns = [LOCAL_PATH, *(re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE) for word in names)]
    for pattern in patterns:
        for read in (text, text.replace("\n", "")):
            if found := pattern.search(read):
                around = read[max(0, found.start() - 40) : found.end() + 40]
                raise ValueError(f"{where} tells something of this machine: {found[0]!r} in {around!r}")
