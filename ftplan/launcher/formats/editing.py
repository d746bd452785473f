"""Edits of a file that keep everything else as it is: comments, order, spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ftplan.launcher.formats.document import Document, Entry, parse_document
from ftplan.launcher.formats.words import Word, commands

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


def edited(document: Document, changes: Mapping[str, Any]) -> str:
    """The document's text with each dotted key set to its new value, or taken out where that is None."""
    text = document.text
    present = {key: value for key, value in changes.items() if key in document.entries}
    for key in sorted(present, key=lambda each: -document.entries[each].start):
        entry = document.entries[key]
        if present[key] is None:
            text = _without(text, document, entry)
        else:
            text = text[: entry.start] + _scalar(present[key], document.syntax) + _tail(text, entry)
    added = {key: value for key, value in changes.items() if key not in document.entries and value is not None}
    return _with(text, document, added) if added else text


def _tail(text: str, entry: Entry) -> str:
    """What follows the entry's value; an empty value ends where its key does, and needs a blank."""
    return text[entry.end :]


def _scalar(value: Any, syntax: str) -> str:
    if syntax == "json" or isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("...\n").strip()


def _without(text: str, document: Document, entry: Entry) -> str:
    if not entry.in_flow:
        start = text.rfind("\n", 0, entry.key_start) + 1
        end = text.find("\n", max(entry.end - 1, entry.key_start))
        return text[:start] + (text[end + 1 :] if end >= 0 else "")
    start, end = entry.key_start, entry.end
    if document.syntax == "json":
        start = text.rfind('"', 0, text.rfind('"', 0, entry.start)) if text[start] != '"' else start
    after = re.compile(r"\s*,").match(text, end)
    if after:
        end = after.end()
        blank = re.compile(r"\s*").match(text, end)
        assert blank is not None
        return text[:start] + text[blank.end() :]
    before = re.compile(r",\s*$").search(text, 0, start)
    return text[: before.start() if before else start] + text[end:]


def _with(text: str, document: Document, added: Mapping[str, Any]) -> str:
    for key, value in added.items():
        if "." in key and document.syntax != "json":
            document = parse_document(text, document.path)  # a parent may have come with the key before
        text = _inserted(text, document, key, value)
    return text


def _inserted(text: str, document: Document, key: str, value: Any) -> str:
    parent, _, name = key.rpartition(".")
    if document.syntax == "json":
        return _inserted_json(text, parent, name, value)
    if parent:
        at = _first_inside(text, document, parent)
        if at is not None:
            start, indent = at
            return f"{text[:start]}{' ' * indent}{name}: {_scalar(value, 'yaml')}\n{text[start:]}"
        inside: Any = {name: value}
        for part in reversed(parent.split(".")):
            inside = {part: inside}
        block = yaml.safe_dump(inside, sort_keys=False, default_flow_style=False)
        return f"{_ended(text)}{block}"
    return f"{_ended(text)}{name}: {_scalar(value, 'yaml')}\n"


def _first_inside(text: str, document: Document, parent: str) -> tuple[int, int] | None:
    """Where the first entry of a block mapping stands in ``text``, and how far it is indented."""
    entry = document.entries.get(parent)
    inside = [each for each in document.entries.values() if each.key.rpartition(".")[0] == parent]
    if entry is None or entry.in_flow or not inside:
        return None
    first = min(inside, key=lambda each: each.key_start)
    name = re.escape(first.key.rpartition(".")[2])
    found = re.compile(rf"^{' ' * first.column}{name}\s*:", re.MULTILINE).search(text)
    return (found.start(), first.column) if found else None


def _ended(text: str) -> str:
    return text if text.endswith("\n") or not text else text + "\n"


def _inserted_json(text: str, parent: str, name: str, value: Any) -> str:
    """After the opening brace of the parent, indented as what follows it."""
    at = text.index("{") if not parent else -1
    if parent:
        match = re.compile(rf'"{re.escape(parent.rpartition(".")[2])}"\s*:\s*\{{').search(text)
        if match is None:
            return _inserted_json(text, parent.rpartition(".")[0], parent.rpartition(".")[2], {name: value})
        at = match.end() - 1
    follows = re.compile(r"\s*").match(text, at + 1)
    assert follows is not None
    comma = "" if text[follows.end()] == "}" else ","
    indent = follows[0] or " "
    return f"{text[: at + 1]}{indent}{json.dumps(name)}: {json.dumps(value)}{comma}{text[at + 1 :]}"


def edited_script(text: str, program: str, changes: Mapping[str, Any]) -> str:
    """A shell script with the options of the command that runs ``program`` set, or taken out where a value is None."""
    command = next((each.words for each in commands(text) if any(word.text == program for word in each.words)), None)
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
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"
