"""JSON as people write it in configurations: comments and trailing commas, blanked out in one pass."""

from __future__ import annotations

import re
from typing import Final

# Atomic and possessive: what is no string, comment or comma in the end is never looked at twice.
_PIECE: Final = re.compile(r'"(?:[^"\\\n]|\\.)*+"?+|//[^\n]*+|/\*|[,}\]]|[^\s"/,}\]]++|/', re.DOTALL)


def without_comments(text: str) -> str:
    """JSON text with comments and trailing commas blanked out, every other character in its place."""
    characters = list(text)
    at, comma = 0, -1
    while match := _PIECE.search(text, at):
        piece, at = match[0], match.end()
        if piece == "/*":
            end = text.find("*/", at)
            if end < 0:
                break
            at = end + 2
        if piece.startswith(("//", "/*")):
            _blank(characters, match.start(), at)
            continue
        if piece in ("}", "]") and comma >= 0:
            characters[comma] = " "
        comma = match.start() if piece == "," else -1
    return "".join(characters)


def _blank(characters: list[str], start: int, end: int) -> None:
    characters[start:end] = ["\n" if char == "\n" else " " for char in characters[start:end]]
