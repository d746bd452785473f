"""Reading JSON and JSON Lines files row by row, with the line each row starts on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ftplan.errors import DataError

_EXPECTED: Final = "a data file holds a JSON array of rows, or JSON Lines: one JSON object a line, in UTF-8"


@dataclass(frozen=True, slots=True)
class Located:
    """One row and the line it starts on, counted from 1."""

    value: object
    line: int


def read_file(path: Path) -> Iterator[Located]:
    """The rows of ``path``; what it holds decides whether it is JSON or JSON Lines, not its name.

    Raises DataError, while it is read, for a file that is missing, no text, or malformed.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = _first_character(file.read(4096))
            file.seek(0)
            if start == "[":
                yield from _array(file.read().removeprefix("\ufeff"), path)
            elif start == "{":
                yield from _lines(file, path)
            elif start:
                raise DataError(f"{path}, line 1: {start!r} does not start JSON", hint=_EXPECTED, field="data")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint=_EXPECTED, field="data") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", hint=_EXPECTED, field="data") from error


def _first_character(text: str) -> str:
    return text.lstrip()[:1]


def _lines(lines: Iterator[str], path: Path) -> Iterator[Located]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Located(_parse(line, path, number), number)


def _parse(line: str, path: Path, number: int) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _malformed(path, number, error) from error


def _array(text: str, path: Path) -> Iterator[Located]:
    """The elements of a JSON array, each with its line, which ``json.loads`` of the whole would not tell."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _malformed(path, error.lineno, error) from error
        yield Located(value, line)
        position = _after_comma(text, position, path)
    _end_of_array(text, position, path)


def _after_comma(text: str, position: int, path: Path) -> int:
    position = _skip_space(text, position)
    if text[position : position + 1] == ",":
        following = _skip_space(text, position + 1)
        if text[following : following + 1] != "]":
            return following
    elif text[position : position + 1] in ("]", ""):
        return position
    raise _malformed(path, 0, json.JSONDecodeError("expected ',' and a row, or ']'", text, position))


def _end_of_array(text: str, position: int, path: Path) -> None:
    if text[position : position + 1] != "]":
        raise _malformed(path, 0, json.JSONDecodeError("the array is not closed: expected ']'", text, len(text)))
    rest = _skip_space(text, position + 1)
    if rest != len(text):
        raise _malformed(path, 0, json.JSONDecodeError("more text after the array", text, rest))


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _malformed(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    where = f"{path}, line {line or error.lineno}"
    return DataError(f"{where}: malformed JSON, column {error.colno}: {error.msg}", hint=_EXPECTED, field="data")
