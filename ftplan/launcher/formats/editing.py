"""Edits of a file that keep everything else as it is: comments, order, spelling.

An edited document is parsed again: what is given out says the old values with the changes, or an error is raised.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import Document, Entry, parse_document
from ftplan.launcher.formats.words import Word, commands

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./+-]+")
_WIDEST: Final = 10**6


def edited(document: Document, changes: Mapping[str, Any]) -> str:
    """The document's text with each dotted key set to its new value, or taken out where that is None.

    Raises ConfigFileError where that cannot be done in place, such as in a mapping that an alias repeats.
    """
    wanted = _expected(document, changes)
    entries = {key: entry for key, entry in document.entries.items() if not entry.is_inherited}
    text = document.text
    present = {key: value for key, value in changes.items() if key in entries and value is not None}
    for key in sorted(present, key=lambda each: -entries[each].start):
        text = _replaced(text, entries[key], present[key], document.syntax)
    now = parse_document(text, document.path) if present else document
    for key in (key for key, value in changes.items() if value is None and key in entries):
        now = parse_document(_without(now, key), now.path)
    for key, value in changes.items():
        if value is not None and key not in entries:
            now = parse_document(_with(now, key, value), now.path)
    if now.data != wanted:
        raise _refused(document, next(iter(changes), ""))
    return now.text


def _refused(document: Document, key: str) -> ConfigFileError:
    hint = "its values are shared or written in an unusual way: make the change by hand"
    return ConfigFileError(f"{document.name}: {key} cannot be edited in place", file=document.name, hint=hint)


def _expected(document: Document, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The document's data with ``changes``."""
    data = copy.deepcopy(dict(document.data))
    for key, value in changes.items():
        if value is None and key not in document.entries:
            continue
        holder, name = _holder(data, key)
        if not isinstance(holder, dict):
            raise _refused(document, key)
        if value is None:
            holder.pop(name, None)
        else:
            holder[name] = value
    return data


def _holder(data: Any, key: str) -> tuple[Any, str]:
    """The mapping that ``key`` is an entry of, and its name there; mappings on the way are made."""
    while isinstance(data, dict) and key not in data and "." in key:
        name = next((each for each in _beginnings(key) if each in data), key.partition(".")[0])
        data = data.setdefault(name, {}) if data.get(name) is not None or name not in data else _made(data, name)
        key = key[len(name) + 1 :]
    return data, key


def _made(data: dict[str, Any], name: str) -> dict[str, Any]:
    data[name] = {}
    return data[name]  # type: ignore[no-any-return]


def _beginnings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _replaced(text: str, entry: Entry, value: Any, syntax: str) -> str:
    column = entry.start - text.rfind("\n", 0, entry.start) - 1
    alone = not entry.in_flow and column <= entry.column  # a list under its key may stand as far left as that
    blank = "  " if alone else "" if entry.end > entry.start or text[entry.start - 1].isspace() else " "
    return text[: entry.start] + blank + _scalar(value, syntax, entry.in_flow) + text[entry.end :]


def _scalar(value: Any, syntax: str, in_flow: bool = False) -> str:
    if syntax == "json":
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict | list):
        return json.dumps(value)
    plain = str(yaml.safe_dump(value, width=_WIDEST)).removesuffix("...\n").strip()
    if isinstance(value, str) and (in_flow or "\n" in plain):
        plain = str(yaml.safe_dump(value, width=_WIDEST, default_style='"')).strip()
    return plain


def _without(document: Document, key: str) -> str:
    """The text without the entry ``key``."""
    text, entry = document.text, document.entries[key]
    if not entry.in_flow:
        return _without_lines(document, entry)
    start = text.rfind('"', 0, entry.key_start + 1) if document.syntax == "json" else entry.key_start
    after = re.compile(r"\s*,[ \t]*").match(text, entry.end)
    if after:
        rest = text[after.end() :]
        alone = text[text.rfind("\n", 0, start) + 1 : start].strip() == "" and rest.startswith("\n")
        return text[:start].rstrip(" \t") + rest[1:] if alone else text[:start] + rest
    before = re.compile(r",\s*$").search(text[:start])
    return text[: before.start() if before else start] + text[entry.end :]


def _without_lines(document: Document, entry: Entry) -> str:
    """The text without the lines of a block's entry; ``{}`` in the place of a mapping that this empties."""
    text = document.text
    parent = entry.key.rpartition(".")[0]
    siblings = [each for each in document.entries.values() if each.key.rpartition(".")[0] == parent]
    if len(siblings) == 1 and parent in document.entries:
        outer = document.entries[parent]
        return text[: outer.start] + "{}" + text[outer.end :]
    start = text.rfind("\n", 0, entry.key_start) + 1
    end = text.find("\n", max(entry.end, entry.key_start))
    rest = text[end + 1 :] if end >= 0 else ""
    return text[:start] + rest if len(siblings) > 1 else f"{{}}\n{text[:start]}{rest}"


def _with(document: Document, key: str, value: Any) -> str:
    """The text with a new entry: in the mapping around it, or in a new one where that is missing."""
    text = document.text
    for parent in _beginnings(key):
        entry = document.entries.get(parent)
        if entry is None or entry.is_inherited:
            continue
        inside = _nested(key[len(parent) + 1 :], value)
        if entry.value is None:
            return _replaced(text, entry, inside, document.syntax)
        if not isinstance(entry.value, dict):
            break
        return _first_in(document, entry, inside)
    return _last(document, _nested(key, value) if "." in key else {key: value})


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _first_in(document: Document, parent: Entry, new: Mapping[str, Any]) -> str:
    """The text with ``new`` before the other entries of ``parent``."""
    text, at = document.text, parent.start
    inside = [each for each in document.entries.values() if each.key.rpartition(".")[0] == parent.key]
    own = [each for each in inside if not each.is_inherited]
    if text[at] == "{":
        return _in_braces(text, at, new, bool(inside))
    if not own:
        raise _refused(document, parent.key)
    first = min(own, key=lambda each: each.key_start)
    start = text.rfind("\n", 0, first.key_start) + 1
    return text[:start] + _lines(new, first.column) + text[start:]


def _last(document: Document, new: Mapping[str, Any]) -> str:
    """The text with ``new`` as the last entry of the whole document."""
    text = document.text
    top = [each for each in document.entries.values() if each.key in document.data]
    if document.syntax == "json" or not top or top[0].in_flow:
        brace = re.compile(r"(?:\s|//[^\n]*+|/\*.*?\*/|#[^\n]*+|---)*+", re.DOTALL).match(text)
        at = brace.end() if brace else 0
        if text[at : at + 1] != "{":
            raise _refused(document, next(iter(new)))
        return _in_braces(text, at, new, bool(document.data))
    ended = text if text.endswith("\n") else text + "\n"
    return ended + _lines(new, top[0].column)


def _in_braces(text: str, at: int, new: Mapping[str, Any], more: bool) -> str:
    """After the opening brace, indented as what follows it."""
    follows = re.compile(r"\s*").match(text, at + 1)
    assert follows is not None
    written = json.dumps(new, ensure_ascii=False)[1:-1]
    return f"{text[: at + 1]}{follows[0]}{written}{',' if more else ''}{follows[0] or ' '}{text[follows.end() :]}"


def _lines(new: Mapping[str, Any], column: int) -> str:
    """Lines of a block mapping; a scalar as it would be written alone."""
    found = ""
    for name, value in new.items():
        spelled = " " * column + _scalar(name, "yaml")
        if isinstance(value, dict) and value:
            found += f"{spelled}:\n{_lines(value, column + 2)}"
        else:
            found += f"{spelled}: {_scalar(value, 'yaml')}\n"
    return found


def edited_script(text: str, words: Sequence[Word], changes: Mapping[str, Any]) -> str:
    """A shell script with the options of one of its commands set, or taken out where a value is None.

    ``words`` are some of that command, as they were read from ``text``: a script may start one program several times.
    """
    places = {(word.start, word.end) for word in words}
    found = (each.words for each in commands(text))
    command = next((each for each in found if places & {(word.start, word.end) for word in each}), None)
    if command is None:
        return text
    edits: list[tuple[int, int, str]] = []
    for key, value in changes.items():
        edits += _option_edits(command, key, value)
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _option_edits(command: Sequence[Word], key: str, value: Any) -> list[tuple[int, int, str]]:
    for place, word in enumerate(command):
        name, equals, _ = word.text.lstrip("-").partition("=")
        is_option = word.text.startswith("--") and name.replace("-", "_") == key
        is_override = bool(equals) and not word.text.startswith("-") and name == key
        if not is_option and not is_override:
            continue
        taken = [] if equals else _values_of(command, place)
        end = taken[-1].end if taken else word.end
        if value is None:
            return [(word.start, end, "")]
        spelled = word.text.partition("=")[0]
        joined = f"{spelled}={_quoted(value)}" if equals else f"{spelled} {_quoted(value)}"
        return [(word.start, end, joined)]
    if value is None:
        return []
    return [(command[-1].end, command[-1].end, f" --{key} {_quoted(value)}")]


def _values_of(command: Sequence[Word], place: int) -> list[Word]:
    found = []
    for word in command[place + 1 :]:
        if word.text.startswith("--"):
            break
        found.append(word)
    return found


def _quoted(value: Any) -> str:
    """A value as words of a shell; a list as one word each."""
    if isinstance(value, list):
        return " ".join(_quoted(each) for each in value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"
