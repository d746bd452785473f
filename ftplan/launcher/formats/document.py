"""A configuration file as settings with their places: YAML, and JSON with comments, in one form.

A `Document` holds plain values (``data``) and, by dotted key, where each stands (``entries``), so that a message can
name the line and an edit can replace a value and leave every other character as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.json_text import without_comments
from ftplan.launcher.formats.nodes import Builder, Entry, Scalar, Span, alias_spans, children
from ftplan.launcher.formats.reading import read_config, shown

__all__ = ["Document", "Entry", "load_document", "parse_document"]

DEEPEST: Final = 32
MOST_NODES: Final = 5_000
"""More than any configuration nests or holds; aliases count as what they stand for."""
MOST_DIRECTIVES: Final = 16
LONGEST_NUMBER: Final = 64
"""Characters of what is read as a number: int() and float() take their time, and 1:2:3 is one to YAML."""

PLAIN_TAGS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
TEXT_TAGS: Final = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:str"})
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTRUCTOR: Final = yaml.constructor.SafeConstructor()


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
        return _document(text, text, path, "yaml", _yaml_scalar)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        problem = str(getattr(error, "problem", None) or "cannot be parsed")[:80]
        raise ConfigFileError(f"{shown(path)} is not valid YAML: {problem}", file=str(path), line=line) from error
    except (RecursionError, MemoryError) as error:
        raise ConfigFileError(f"{shown(path)} nests too deeply", file=str(path)) from error
    except UnicodeError as error:
        raise ConfigFileError(f"{shown(path)} is no UTF-8 text", file=str(path)) from error


def _json(text: str, path: Path) -> Document:
    plain = without_comments(text)
    try:
        json.loads(plain)
    except json.JSONDecodeError as error:
        message = f"{shown(path)} is not valid JSON: {error.msg}"
        raise ConfigFileError(message, file=str(path), line=error.lineno) from error
    except ValueError as error:
        raise ConfigFileError(f"{shown(path)} is not valid JSON: {error}", file=str(path)) from error
    return _document(text, plain.replace("\t", " "), path, "json", _json_scalar)


def _document(text: str, plain: str, path: Path, syntax: Literal["yaml", "json"], scalar: Scalar) -> Document:
    """The document that ``plain``, which is ``text`` as YAML reads it, holds."""
    aliases = _looked_over(plain, path)
    root = yaml.compose(plain, Loader=_Loader)
    if root is None:
        raise ConfigFileError(f"{shown(path)} is empty", file=str(path))
    if not isinstance(root, yaml.MappingNode):
        raise ConfigFileError(f"{shown(path)} holds no mapping of keys to values", file=str(path), line=1)
    _expanded_size(root, {}, path)
    builder = Builder(plain, path, scalar, alias_spans(root, iter(aliases)))
    data = builder.mapping(root, "")
    return Document(path, text, syntax, data, builder.entries)


def _looked_over(text: str, path: Path) -> list[Span]:
    """Where the aliases of ``text`` stand, after its depth and length were looked at event by event."""
    if len(re.findall(r"^%", text, re.MULTILINE)) > MOST_DIRECTIVES:
        raise ConfigFileError(f"{shown(path)} has more than {MOST_DIRECTIVES} YAML directives", file=str(path))
    depth = 0
    aliases = []
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.start_mark is not None and event.end_mark is not None:
            aliases.append((event.start_mark.index, event.end_mark.index))
        if depth > DEEPEST or count > MOST_NODES:
            what = f"nests deeper than {DEEPEST} levels" if depth > DEEPEST else f"holds more than {MOST_NODES} values"
            line = event.start_mark.line + 1 if event.start_mark is not None else 0
            raise ConfigFileError(f"{shown(path)} {what}", file=str(path), line=line)
    return aliases


def _expanded_size(node: yaml.Node, known: dict[int, int], path: Path) -> int:
    """Nodes under ``node`` with aliases written out; raises for too many, or one that holds itself."""
    size = known.get(id(node))
    if size == 0:
        raise ConfigFileError(f"{shown(path)}: an alias holds itself", file=str(path), line=node.start_mark.line + 1)
    if size is not None:
        return size
    known[id(node)] = 0
    size = 1 + sum(_expanded_size(child, known, path) for child in children(node))
    if size > MOST_NODES:
        message = f"{shown(path)} holds more than {MOST_NODES} values once its aliases are written out"
        raise ConfigFileError(message, file=str(path), line=node.start_mark.line + 1)
    known[id(node)] = size
    return size


def _yaml_scalar(node: yaml.ScalarNode, path: Path) -> Any:
    if node.tag in TEXT_TAGS:
        return str(node.value)
    if node.tag not in PLAIN_TAGS:
        message = f"{shown(path)}: the tag {node.tag[:80]} is not read"
        raise ConfigFileError(message, hint="plain values only", file=str(path), line=node.start_mark.line + 1)
    try:
        if len(node.value) > LONGEST_NUMBER:
            raise ValueError(node.tag)
        return _CONSTRUCTOR.construct_object(node)
    # Explicit tags put anything into YAML's constructors: !!bool maybe, !!int "".
    except (ValueError, ArithmeticError, LookupError, yaml.YAMLError) as error:
        raise _no_value(node, path) from error


def _json_scalar(node: yaml.ScalarNode, path: Path) -> Any:
    if node.style == '"':
        return str(node.value)
    if len(node.value) > LONGEST_NUMBER:
        raise _no_value(node, path)
    return json.loads(node.value)


def _no_value(node: yaml.ScalarNode, path: Path) -> ConfigFileError:
    message = f"{shown(path)}: {node.value[:40]!r} is no value"
    return ConfigFileError(message, file=str(path), line=node.start_mark.line + 1)
