"""What a stream that lacks a character gets in its place: bars and marks in ASCII, anything else spelled out."""

from __future__ import annotations

import codecs
from typing import Final

NAME: Final = "ftplan.spelled"
SPELLED: Final = {
    **dict.fromkeys("█▉▊▋▌", "#"),
    **dict.fromkeys("▍▎▏", "-"),
    **dict(zip("▁▂▃▄▅▆▇", "__..--=", strict=True)),
    **{"·": "|", "…": "...", "µ": "u", "×": "x", "–": "-", "—": "-", "→": "->", "≥": ">=", "≤": "<="},
    **{"‘": "'", "’": "'", "“": '"', "”": '"'},
}
"""One character for one of a bar or a curve, so that they keep their width."""


def spelled(error: UnicodeError) -> tuple[str, int]:
    """A handler of encoding errors: the place of what cannot be encoded is taken by what `SPELLED` says."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    text = "".join(SPELLED.get(char) or char.encode("ascii", "backslashreplace").decode("ascii") for char in bad)
    return text, error.end


def register() -> str:
    """Make the handler known to Python, and return its name."""
    codecs.register_error(NAME, spelled)
    return NAME
