"""Reading JSON and JSON Lines files row by row, with the line each row starts on."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ftplan.errors import DataError

_EXPECTED: Final = "a data file holds a JSON array of rows, or JSON Lines: one JSON object a line, in UTF-8"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_HEAD_BYTES: Final = 4096
_OBJECT_LINE: Final = re.compile(rb"^[ \t]*\{", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Located:
    """One row and the line it starts on, counted from 1; ``problem`` says why it cannot be read, if it cannot.

    ``row`` is its number in a JSON array, which may be one line.
    """

    value: object
    line: int
    problem: str = ""
    row: int | None = None


def read_file(path: Path) -> Iterator[Located]:
    """The rows of ``path``; what it holds decides whether it is JSON or JSON Lines, not its name.

    A malformed line of JSON Lines is a row with a problem. Raises DataError, while it is read, for a file that is
    missing or no text, and for a malformed array, in which nothing tells where the next row starts.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).removeprefix(_BYTE_ORDER_MARK)
            file.seek(0)
            start = head.lstrip()[:1]
            if start == b"[":
                yield from _array(file.read().removeprefix(_BYTE_ORDER_MARK).decode(), path)
            elif _OBJECT_LINE.search(head):
                yield from _lines(file)
            elif start:
                raise DataError(_no_json(head, path), hint=_EXPECTED, field="data")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint=_EXPECTED, field="data") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", hint=_EXPECTED, field="data") from error


def _no_json(head: bytes, path: Path) -> str:
    # The head may end within a character.
    text = codecs.getincrementaldecoder("utf-8")().decode(head)
    start = text.lstrip()
    return f"{path}, line {text[: -len(start)].count(chr(10)) + 1}: {start[0]!r} does not start JSON"


def _lines(lines: Iterable[bytes]) -> Iterator[Located]:
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if text.strip():
            yield _parsed(text, number)


def _parsed(line: bytes, number: int) -> Located:
    try:
        return Located(json.loads(line.decode()), number)
    except UnicodeDecodeError as error:
        return Located(None, number, f"not UTF-8 text, byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Located(None, number, f"malformed JSON, column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:  # numbers and nesting beyond what Python reads
        return Located(None, number, f"JSON that cannot be read: {error}")


def _array(text: str, path: Path) -> Iterator[Located]:
    """The elements of a JSON array, each with its line, which ``json.loads`` of the whole would not tell."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    line, counted, row = 1, 0, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _malformed(path, error.lineno, error) from error
        except (ValueError, RecursionError) as error:
            message = f"{path}, line {line}: JSON that cannot be read: {error}"
            raise DataError(message, hint=_EXPECTED, field="data") from error
        row += 1
        yield Located(value, line, row=row)
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
