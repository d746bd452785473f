"""A configuration file as settings with their places: YAML, and JSON with comments, in one form.

A `Document` holds plain values (``data``) and, by dotted key, where each stands (``entries``), so that a message can
name the line and an edit can replace a value and leave every other character as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.reading import read_config, shown

DEEPEST: Final = 32
MOST_NODES: Final = 20_000
"""More than any configuration nests or holds; aliases count as what they stand for."""

PLAIN_TAGS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
TEXT_TAGS: Final = frozenset({"tag:yaml.org,2002:timestamp"})
MERGE: Final = "tag:yaml.org,2002:merge"
_COMMENT_OR_STRING: Final = re.compile(
    r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[}\]])', re.DOTALL
)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """One value of a file: offsets of its text, and of the whole entry with its key; its line, from 1."""

    key: str
    value: Any
    line: int
    start: int
    end: int
    key_start: int
    column: int
    in_flow: bool


@dataclass(frozen=True)
class Document:
    """A file's mapping. ``entries`` holds leaves and mappings by dotted key; lists are leaves."""

    path: Path
    text: str
    syntax: Literal["yaml", "json"]
    data: Mapping[str, Any]
    entries: Mapping[str, Entry]

    @property
    def name(self) -> str:
        """The file as messages name it."""
        return shown(self.path)


def load_document(path: Path, *, asked_by: str = "") -> Document:
    """The document in ``path``; raises ConfigFileError for what is no YAML or JSON mapping."""
    return parse_document(read_config(path, asked_by=asked_by), path)


def parse_document(text: str, path: Path) -> Document:
    """The document that ``text`` is; ``path`` decides between YAML and JSON, and is what errors name."""
    is_json = path.suffix.lower() == ".json" or (
        path.suffix.lower() not in (".yaml", ".yml") and text.lstrip()[:1] == "{"
    )
    try:
        if is_json:
            return _json(text, path)
        root = _composed(text, path)
        return _document(text, path, "yaml", root, _yaml_scalar)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigFileError(f"{shown(path)} is not valid YAML: {problem}", file=str(path), line=line) from error
    except (RecursionError, MemoryError) as error:
        raise ConfigFileError(f"{shown(path)} nests too deeply", file=str(path)) from error


def _json(text: str, path: Path) -> Document:
    plain = _without_comments(text)
    try:
        json.loads(plain)
    except json.JSONDecodeError as error:
        message = f"{shown(path)} is not valid JSON: {error.msg}"
        raise ConfigFileError(message, file=str(path), line=error.lineno) from error
    except ValueError as error:
        raise ConfigFileError(f"{shown(path)} is not valid JSON: {error}", file=str(path)) from error
    return _document(text, path, "json", _composed(plain.replace("\t", " "), path), _json_scalar)


def _without_comments(text: str) -> str:
    """JSON text with comments and trailing commas blanked out, every other character in its place."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        return found if found.startswith('"') else "".join("\n" if char == "\n" else " " for char in found)

    return _COMMENT_OR_STRING.sub(blank, text)


def _composed(text: str, path: Path) -> yaml.Node:
    """The node graph of the one YAML document in ``text``, after its depth was looked at event by event."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST or count > MOST_NODES:
            what = f"nests deeper than {DEEPEST} levels" if depth > DEEPEST else f"holds more than {MOST_NODES} values"
            raise ConfigFileError(f"{shown(path)} {what}", file=str(path), line=_line(event))
    root = yaml.compose(text, Loader=_Loader)
    if root is None:
        raise ConfigFileError(f"{shown(path)} is empty", file=str(path))
    if not isinstance(root, yaml.MappingNode):
        raise ConfigFileError(f"{shown(path)} holds no mapping of keys to values", file=str(path), line=1)
    _expanded_size(root, {}, path)
    return root


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


def _expanded_size(node: yaml.Node, known: dict[int, int], path: Path) -> int:
    """Nodes under ``node`` with aliases written out; raises for too many, or one that holds itself."""
    size = known.get(id(node))
    if size == 0:
        raise ConfigFileError(f"{shown(path)}: an alias holds itself", file=str(path), line=node.start_mark.line + 1)
    if size is not None:
        return size
    known[id(node)] = 0
    size = 1 + sum(_expanded_size(child, known, path) for child in _children(node))
    if size > MOST_NODES:
        message = f"{shown(path)} holds more than {MOST_NODES} values once its aliases are written out"
        raise ConfigFileError(message, file=str(path), line=node.start_mark.line + 1)
    known[id(node)] = size
    return size


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _yaml_scalar(node: yaml.ScalarNode, path: Path) -> Any:
    if node.tag in TEXT_TAGS:
        return node.value
    if node.tag not in PLAIN_TAGS:
        message = f"{shown(path)}: the tag {node.tag} is not read"
        raise ConfigFileError(message, hint="plain values only", file=str(path), line=node.start_mark.line + 1)
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, yaml.YAMLError) as error:
        message = f"{shown(path)}: {node.value[:40]!r} is no value"
        raise ConfigFileError(message, file=str(path), line=node.start_mark.line + 1) from error


def _json_scalar(node: yaml.ScalarNode, _: Path) -> Any:
    return node.value if node.style == '"' else json.loads(node.value)


class _Builder:
    """Turns nodes into plain values and notes where each stands."""

    def __init__(self, path: Path, scalar: Any) -> None:
        self.path = path
        self.scalar = scalar
        self.entries: dict[str, Entry] = {}

    def mapping(self, node: yaml.MappingNode, prefix: str) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                for merged in self._merged(value_node):
                    data = {**self.mapping(merged, prefix), **data}
                continue
            key = self._key(key_node)
            value = self.value(value_node, f"{prefix}{key}.")
            data[key] = value
            dotted = prefix + key
            start, end = value_node.start_mark.index, value_node.end_mark.index
            mark = key_node.start_mark
            self.entries[dotted] = Entry(
                dotted, value, mark.line + 1, start, end, mark.index, mark.column, bool(node.flow_style)
            )
        return data

    def value(self, node: yaml.Node, prefix: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, prefix)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            return [self.value(item, f"{prefix}{index}.") for index, item in enumerate(node.value)]
        return self.scalar(node, self.path)

    def _merged(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                raise ConfigFileError(
                    f"{shown(self.path)}: << merges no mapping", file=str(self.path), line=node.start_mark.line + 1
                )
            yield each

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            message = f"{shown(self.path)}: a key is no plain word"
            raise ConfigFileError(message, file=str(self.path), line=node.start_mark.line + 1)
        return str(node.value)

    def _check_tag(self, node: yaml.Node, name: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{name}":
            message = f"{shown(self.path)}: the tag {node.tag} is not read"
            raise ConfigFileError(message, hint="plain values only", file=str(self.path), line=node.start_mark.line + 1)


def _document(text: str, path: Path, syntax: Literal["yaml", "json"], root: yaml.Node, scalar: Any) -> Document:
    builder = _Builder(path, scalar)
    builder._check_tag(root, "map")
    assert isinstance(root, yaml.MappingNode)
    data = builder.mapping(root, "")
    return Document(path, text, syntax, data, builder.entries)
