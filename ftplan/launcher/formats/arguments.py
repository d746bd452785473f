"""A program's command-line arguments as settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import yaml

from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.launcher.formats.words import Word
from ftplan.verdicts import Place

_OVERRIDE: Final = re.compile(r"~?\+{0,2}([A-Za-z_][\w.\-]*)=(.*)", re.DOTALL)
_DEEPEST: Final = 32
_LONGEST: Final = 1024
_LONGEST_NUMBER: Final = 64
_WORD: Final = re.compile(r"[A-Za-z_/][\w./-]*")
_NO_WORDS: Final = frozenset(
    {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"}  # to YAML, or to Python
)
PASSED_ON: Final = frozenset({"$@", "$*", "${@}", "${*}"})


def argument_settings(words: Sequence[Word], script: str = "") -> tuple[Settings, tuple[Word, ...]]:
    """Settings of ``--key value``, ``--key=value``, ``--key`` and ``key=value``, and the words that are none of these.

    Hyphens in a name count as underscores. Several values make a list, which a ``key=value`` ends, and
    ``--no_key`` sets ``key`` to false unless values follow. A script's own
    arguments, ``"$@"``, are taken to be none.
    """
    words = [word for word in words if word.text not in PASSED_ON]
    found: dict[str, Setting] = {}
    others: list[Word] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        place = Place(script, word.line)
        if _is_option(word):
            name, equals, value = word.text.lstrip("-").partition("=")
            key = name.replace("-", "_")
            taken: list[Word] = []
            while not equals and at < len(words) and not _is_option(words[at]) and not _ends(words[at], taken):
                taken.append(words[at])
                at += 1
            missing = word.unresolved or next((each.unresolved for each in taken if each.unresolved), "")
            if not equals and not taken and key.startswith("no_"):
                found[key[3:]] = Setting(key[3:], False, place)
            else:
                plain = plain_value(value) if equals else _values([each.text for each in taken])
                found[key] = Setting(key, plain, place, missing)
        elif (match := _OVERRIDE.fullmatch(word.text)) and not word.text.startswith("-"):
            found[match[1]] = Setting(match[1], plain_value(match[2]), place, word.unresolved)
        else:
            others.append(word)
    return Settings(found), tuple(others)


def _is_option(word: Word) -> bool:
    return bool(re.match(r"--[A-Za-z_]|-[A-Za-z]", word.text))


def _ends(word: Word, taken: Sequence[Word]) -> bool:
    """Whether a word is no value of an option: a script's own arguments, or after one a setting by itself."""
    return word.unresolved in ("$@", "$*") or (bool(taken) and _OVERRIDE.fullmatch(word.text) is not None)


def _values(texts: Sequence[str]) -> Any:
    if not texts:
        return True
    return plain_value(texts[0]) if len(texts) == 1 else [plain_value(text) for text in texts]


def plain_value(text: str) -> Any:
    """The number, truth value or list that ``text`` spells in YAML, else the text itself."""
    if len(text) > _LONGEST or any(mark in text for mark in ("&", "*", "!", "\n")):
        return text
    if text == "None":
        return None
    if _WORD.fullmatch(text) and text.lower() not in _NO_WORDS:
        return text
    if text[:1] not in ("[", "{") and len(text) > _LONGEST_NUMBER:
        return text
    if max(text.count("["), text.count("{")) > _DEEPEST:
        return text
    try:
        value = yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError):
        return text
    if isinstance(value, dict):
        return value if text.lstrip().startswith("{") else text
    return value if value is None or isinstance(value, bool | int | float | str | list) else text
