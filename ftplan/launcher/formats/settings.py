"""A framework's settings with their places, and typed looks at them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import Document
from ftplan.verdicts import NOWHERE, Place

TRUE: Final = frozenset({"true", "yes", "on", "1", "y", "t"})
FALSE: Final = frozenset({"false", "no", "off", "0", "n", "f", "none", ""})
_NUMBER: Final = re.compile(r"[+-]?(\d[\d_]*+\.?\d*+|\.\d++)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Setting:
    """One value that somebody wrote; ``unresolved`` names what only a shell could fill in."""

    key: str
    value: Any
    place: Place = NOWHERE
    unresolved: str = ""


class Settings(Mapping[str, Setting]):
    """Settings by key; later ones replace earlier ones. Immutable but for `replaced`, which makes a copy."""

    def __init__(self, settings: Mapping[str, Setting] | None = None) -> None:
        self._by_key = dict(settings or {})

    def __getitem__(self, key: str) -> Setting:
        return self._by_key[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_key)

    def __len__(self) -> int:
        return len(self._by_key)

    def replaced(self, others: Mapping[str, Setting]) -> Settings:
        """These settings with ``others`` in the place of those of the same keys."""
        return Settings({**self._by_key, **others})

    def value(self, key: str, default: Any = None) -> Any:
        """The plain value of ``key``, or ``default`` where it is absent or null."""
        setting = self._by_key.get(key)
        return default if setting is None or setting.value is None or setting.unresolved else setting.value

    def place(self, key: str) -> Place:
        """Where ``key`` stands; nowhere if it is absent."""
        return self._by_key[key].place if key in self._by_key else NOWHERE

    def text(self, key: str, default: str = "") -> str:
        """The value as text."""
        value = self.value(key, default)
        if isinstance(value, Mapping | list):
            raise self._bad(key, "a word")
        return str(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """The value as yes or no."""
        value = self.value(key, default)
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in TRUE:
            return True
        if word in FALSE:
            return False
        raise self._bad(key, "true or false")

    def integer(self, key: str, default: int, *, least: int = 0) -> int:
        """The value as an integer of at least ``least``; numbers written as text or as 1e9 count."""
        found = self.number(key, float(default))
        if found != int(found) or found < least:
            raise self._bad(key, f"an integer of at least {least}")
        return int(found)

    def number(self, key: str, default: float) -> float:
        """The value as a finite number."""
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self._bad(key, "a number")
        if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
            raise self._bad(key, "a number")
        found = float(str(value).replace("_", ""))
        if not abs(found) < 1e18:
            raise self._bad(key, "a number of a usual size")
        return found

    def words(self, key: str) -> tuple[str, ...]:
        """The value as a list of words: a list, or text with commas."""
        value = self.value(key, [])
        items = value if isinstance(value, list) else str(value).split(",")
        if any(isinstance(item, Mapping | list) for item in items):
            raise self._bad(key, "a list of words")
        return tuple(str(item).strip() for item in items if str(item).strip())

    def _bad(self, key: str, wanted: str) -> ConfigFileError:
        setting = self._by_key[key]
        told = f"{setting.value!r}"
        message = f"{setting.place.file or 'the command line'}: {key} is {told[:60]}, not {wanted}"
        return ConfigFileError(message, file=setting.place.file, line=setting.place.line, field=key)


def document_settings(document: Document, *, nested: bool = False) -> Settings:
    """The settings of a file: its top-level keys, or with ``nested`` every leaf by its dotted key."""
    found = {}
    for key, entry in document.entries.items():
        if nested and isinstance(entry.value, dict) and entry.value:
            continue
        if nested or "." not in key or key in document.data:
            found[key] = Setting(key, entry.value, Place(document.name, entry.line))
    return Settings(found)


def flattened(values: Mapping[str, Any], place: Place, prefix: str = "") -> dict[str, Setting]:
    """Every leaf of ``values`` by its dotted key."""
    found: dict[str, Setting] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, place, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = Setting(f"{prefix}{key}", value, place)
    return found
