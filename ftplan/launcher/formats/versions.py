"""Keys as a release spells them: what the vocabulary knows of names that came, went or changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftplan.errors import InputError
from ftplan.profiles.frameworks import Vocabulary


def release(version: str) -> tuple[int, ...]:
    """The numbers of a release, to compare: ``4.46.0rc1`` is (4, 46). Raises InputError for what starts with none."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    if not numbers:
        raise InputError(f"{version[:40]!r} is no release", hint="write its numbers, such as 5.23", field="version")
    return tuple(numbers)


def is_before(version: str, other: str) -> bool:
    """Whether ``version`` is an older release than ``other``; no version means the newest one."""
    return bool(version) and release(version) < release(other)


def written(
    arguments: Mapping[str, Any], vocabulary: Vocabulary, version: str = "", prefix: str = ""
) -> dict[str, Any]:
    """``arguments`` under the names that the release has; without one, that of the vocabulary.

    Only the vocabulary's own names are looked at: those of an included library follow that library's releases. Raises
    InputError for what the release lacks under any name.
    """
    version = version or vocabulary.version
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        dotted = f"{prefix}{key}"
        name = _name(dotted, vocabulary, version).removeprefix(prefix)
        inside = isinstance(value, Mapping) and any(known.startswith(f"{dotted}.") for known in vocabulary.defaults)
        found[name] = written(value, vocabulary, version, f"{dotted}.") if inside else value
    return found


def _name(key: str, vocabulary: Vocabulary, version: str) -> str:
    """What the release calls ``key``."""
    if key not in vocabulary.own:
        return key
    present = vocabulary.canonical(key)
    added = vocabulary.added.get(present, "")
    if not added or not is_before(version, added):
        return present
    for old, each in vocabulary.renamed.items():
        if each.to == present and each.since and old in vocabulary.own and not _is_gone(old, vocabulary, version):
            return old
    raise InputError(
        f"{vocabulary.name} {version} has no {present}, which came with {added}",
        hint=f"choose {vocabulary.name} {added} or newer, or do without it",
        field=present,
    )


def _is_gone(old: str, vocabulary: Vocabulary, version: str) -> bool:
    removed = vocabulary.renamed[old].removed
    return removed is not None and not is_before(version, removed)
