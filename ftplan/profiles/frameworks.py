"""Vocabularies of training frameworks: every key they know, its default, and what a memory model must not overlook.

``data/frameworks/*.json`` was read from each framework's own sources; the file says which release. A key that is in no
vocabulary is unknown; one that is `Costly` changes memory in a way that no estimator here models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ftplan.profiles.packaged import packaged_json

Effect = Literal["more", "less", "either"]


@dataclass(frozen=True)
class Costly:
    """A key that changes memory unless it has one of the ``harmless`` values; ``effect`` is on the peak."""

    harmless: tuple[Any, ...]
    effect: Effect
    why: str


@dataclass(frozen=True)
class Renamed:
    """An older name: what it is now, since which release, and the release that no longer takes it."""

    to: str
    since: str
    removed: str | None


@dataclass(frozen=True)
class Removed:
    """A name that is gone: since which release, and what to write instead."""

    since: str
    instead: str


@dataclass(frozen=True)
class Vocabulary:
    """The keys of one framework, those of the libraries it passes them on to among them.

    ``own`` are the names that its own file holds; the others follow the releases of those libraries.
    """

    name: str
    version: str
    source: str
    defaults: Mapping[str, Any]
    costly: Mapping[str, Costly]
    renamed: Mapping[str, Renamed]
    removed: Mapping[str, Removed]
    added: Mapping[str, str]
    own: frozenset[str] = frozenset()

    def __contains__(self, key: str) -> bool:
        return key in self.defaults or key in self.renamed

    def canonical(self, key: str) -> str:
        """The present name of ``key``."""
        return self.renamed[key].to if key in self.renamed else key


@cache
def load_vocabulary(name: str) -> Vocabulary:
    """The vocabulary in ``data/frameworks/<name>.json``, with those that it includes."""
    row = packaged_json(f"frameworks/{name}.json")
    parts = [load_vocabulary(each) for each in row.get("includes", ())]
    costly = {
        key: Costly(tuple(each["harmless"]), each["effect"], each["why"]) for key, each in row.get("costly", {}).items()
    }
    renamed = {
        key: Renamed(each["to"], each["in"], each.get("removed")) for key, each in row.get("renamed", {}).items()
    }
    removed = {key: Removed(each["in"], each["instead"]) for key, each in row.get("removed", {}).items()}
    return Vocabulary(
        name=row["framework"],
        version=row["version"],
        source=row["source"],
        defaults=_joined([part.defaults for part in parts], row["keys"]),
        costly=_joined([part.costly for part in parts], costly),
        # What a framework declares anew keeps its name, whatever the library calls it by now.
        renamed=_joined([_without(part.renamed, row["keys"]) for part in parts], renamed),
        removed=_joined([part.removed for part in parts], removed),
        added=_joined([_without(part.added, row["keys"]) for part in parts], row.get("added", {})),
        own=frozenset({*row["keys"], *renamed, *removed, *row.get("added", {})}),
    )


def _without(part: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in keys}


def _joined(parts: list[Mapping[str, Any]], own: Mapping[str, Any]) -> dict[str, Any]:
    """The parts' entries under the own ones, which win."""
    return {key: value for part in (*parts, own) for key, value in part.items()}
