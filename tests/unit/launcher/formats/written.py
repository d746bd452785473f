"""Files that stand in a test, read as those on disk are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.sources import Source, opened
from ftplan.verdicts import Problem


def source_of(texts: Mapping[str, str], *words: str, framework: str = "") -> Source:
    """The source that ``words`` are, or the first of ``texts``, which are files by name."""
    files = Files({Path(name): text for name, text in texts.items()})
    return opened(words or [next(iter(texts))], files, framework)


def said_by(texts: Mapping[str, str], *words: str, ranks: int = 1, framework: str = "") -> Partial:
    """What ``texts`` say for so many processes."""
    return source_of(texts, *words, framework=framework).understood(ranks)


def problems_of(part: Partial, *kinds: str) -> list[Problem]:
    """The problems of some kinds."""
    return [each for each in part.problems if each.kind in kinds]


def about(part: Partial, key: str) -> list[str]:
    """What is wrong with one key."""
    return [each.message for each in part.problems if each.key == key]


def fields(part: Partial, *names: str) -> dict[str, Any]:
    """Some of the fields."""
    return {name: part.fields[name] for name in names}
