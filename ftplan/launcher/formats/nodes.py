"""YAML's node graph as plain values, with the place of each in the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.reading import shown

MERGE: Final = "tag:yaml.org,2002:merge"
LONGEST_KEY: Final = 1000
"""Of a dotted key, with those of the mappings around it: the longest of any framework has a tenth."""

Span = tuple[int, int]
Scalar = Callable[[yaml.ScalarNode, Path], Any]


@dataclass(frozen=True)
class Entry:
    """One value of a file: offsets of its text, and of the whole entry with its key; its line, from 1.

    ``is_inherited`` where a merge or an alias gives it, so that its text is another entry's.
    """

    key: str
    value: Any
    line: int
    start: int
    end: int
    key_start: int
    column: int
    in_flow: bool
    is_inherited: bool = False


def children(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes right under ``node``: of a mapping keys and values in turn."""
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def alias_spans(root: yaml.Node, aliases: Iterator[Span]) -> dict[tuple[int, int], Span]:
    """Where aliases stand, by the node that holds one and its place there; ``aliases`` are all, in order."""
    spans: dict[tuple[int, int], Span] = {}
    seen: set[int] = set()

    def walk(node: yaml.Node) -> None:
        seen.add(id(node))
        for place, child in enumerate(children(node)):
            if id(child) in seen:
                spans[id(node), place] = next(aliases)
            else:
                walk(child)

    walk(root)
    return spans


class Builder:
    """Turns nodes into plain values and notes where each stands."""

    def __init__(self, text: str, path: Path, scalar: Scalar, spans: dict[tuple[int, int], Span]) -> None:
        self.text = text
        self.path = path
        self.scalar = scalar
        self.spans = spans
        self.entries: dict[str, Entry] = {}

    def mapping(self, node: yaml.MappingNode, prefix: str, *, inherited: bool = False) -> dict[str, Any]:
        """The values of a mapping; what it merges gives way to what it says itself."""
        data: dict[str, Any] = {}
        self._fill(node, prefix, data, inherited)
        return data

    def _fill(self, node: yaml.MappingNode, prefix: str, data: dict[str, Any], inherited: bool) -> None:
        self._check_tag(node, "map")
        own: set[str] = set()
        for place, (key_node, value_node) in enumerate(node.value):
            key = self._key(key_node)
            if key in own:
                raise self._error(
                    key_node, f"the key {key[:80]!r} is given twice", "frameworks refuse it, or take either"
                )
            own.add(key)
            if key_node.tag == MERGE or key in data:
                continue
            dotted = prefix + key
            if len(dotted) > LONGEST_KEY:
                raise self._error(key_node, f"a key has more than {LONGEST_KEY} characters")
            alias = self.spans.get((id(node), 2 * place + 1))
            data[key] = self.value(value_node, f"{dotted}.", inherited=inherited or alias is not None)
            start, end = alias or (value_node.start_mark.index, self._end(value_node))
            mark = key_node.start_mark
            self.entries[dotted] = Entry(
                dotted, data[key], mark.line + 1, start, end, mark.index, mark.column, bool(node.flow_style), inherited
            )
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                for merged in self._merged(value_node):
                    self._fill(merged, prefix, data, True)

    def value(self, node: yaml.Node, prefix: str, *, inherited: bool) -> Any:
        """The plain value of any node."""
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, prefix, inherited=inherited)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            return [
                self.value(item, f"{prefix}{place}.", inherited=inherited or (id(node), place) in self.spans)
                for place, item in enumerate(node.value)
            ]
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, self.path)

    def _end(self, node: yaml.Node) -> int:
        """Where the text of ``node`` ends: a block's own mark is where the next one begins, behind comments."""
        last = len(list(children(node))) - 1
        if last < 0 or (isinstance(node, yaml.CollectionNode) and node.flow_style):
            written = self.text[node.start_mark.index : node.end_mark.index]
            return int(node.start_mark.index) + len(written.rstrip() if written[:1] in ("|", ">") else written)
        alias = self.spans.get((id(node), last))
        return alias[1] if alias else self._end(list(children(node))[-1])

    def _merged(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                raise self._error(node, "<< merges no mapping")
            yield each

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key is no plain word")
        return str(node.value)

    def _check_tag(self, node: yaml.Node, name: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{name}":
            raise self._error(node, f"the tag {node.tag[:80]} is not read", "plain values only")

    def _error(self, node: yaml.Node, message: str, hint: str = "") -> ConfigFileError:
        line = node.start_mark.line + 1
        return ConfigFileError(f"{shown(self.path)}: {message}", hint=hint, file=str(self.path), line=line)
