"""Searching the catalogues: every word counts; what finds nothing gets a hint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ftplan.errors import UnknownNameError

Row = TypeVar("Row")


@dataclass(frozen=True)
class Listing(Generic[Row]):
    """The rows that a search found; ``hint`` says what to try if there are none."""

    rows: tuple[Row, ...]
    hint: str = ""


def words_of(search: Iterable[str]) -> tuple[str, ...]:
    """The words of arguments, some of which may hold several."""
    return tuple(word for text in search for word in text.split())


def holds(texts: Iterable[str], words: Iterable[str]) -> bool:
    """Whether each of ``words`` is a part of one of ``texts``, in any case."""
    lower = [text.lower() for text in texts]
    return all(any(word.lower() in text for text in lower) for word in words)


def hint_for(what: str, words: Sequence[str], names: Iterable[str], *, found: int, limits: str) -> str:
    """What to try where nothing was found: without ``limits`` if the words alone find some, else the nearest names."""
    if found:
        return f"{found} found without {limits}"
    return UnknownNameError(what, " ".join(words), names, field="search").hint
