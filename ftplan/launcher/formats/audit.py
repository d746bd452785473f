"""Every setting against the framework's vocabulary: nothing that somebody wrote is passed over in silence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from ftplan.launcher.formats.settings import FALSE, Setting, Settings
from ftplan.profiles.frameworks import Costly, Vocabulary
from ftplan.verdicts import Problem, Severity

MOST_STRANGERS: Final = 40
"""Unknown keys that are told one by one."""


def audit(settings: Settings, vocabulary: Vocabulary, modelled: Collection[str] = ()) -> Iterator[Problem]:
    """Problems with keys: unknown, renamed, gone, or costing memory that no estimator models.

    ``modelled`` names keys that the format's reader takes into account itself, whatever they hold.
    """
    strangers = [key for key in settings if key not in vocabulary and not settings[key].unresolved]
    if len(strangers) > MOST_STRANGERS:
        yield _many_unknown(settings, strangers[MOST_STRANGERS:], vocabulary)
    left_out = frozenset(strangers[MOST_STRANGERS:])
    for key, setting in settings.items():
        if key in left_out:
            continue
        if setting.unresolved:
            yield _unresolved(setting, matters=_matters(key, vocabulary, modelled))
        elif key in vocabulary.removed and key not in vocabulary.defaults:
            yield _removed(setting, vocabulary)
        elif key not in vocabulary:
            yield _unknown(setting, vocabulary)
        else:
            if key in vocabulary.renamed:
                yield from _renamed(setting, vocabulary)
            name = vocabulary.canonical(key)
            if name not in modelled and not modelled_parent(name, modelled):
                yield from _costly(setting, _costly_of(name, vocabulary))


def _matters(key: str, vocabulary: Vocabulary, modelled: Collection[str]) -> bool:
    """Whether memory depends on ``key``, or may: it is unknown."""
    name = vocabulary.canonical(key)
    read = name in modelled or key in modelled or modelled_parent(name, modelled)
    return read or key not in vocabulary or _costly_of(name, vocabulary) is not None


def _unresolved(setting: Setting, *, matters: bool) -> Problem:
    return Problem(
        "unresolved",
        Severity.WARNING if matters else Severity.NOTE,
        f"{setting.key[:80]} depends on {shown_value(setting.unresolved)}, which only a shell knows",
        hint=f"set it in front of the command, or give the value with --set {setting.key[:80]}=...",
        key=setting.key,
        place=setting.place,
        may_need_more=matters,
        may_need_less=matters,
    )


def _unknown(setting: Setting, vocabulary: Vocabulary) -> Problem:
    near = difflib.get_close_matches(setting.key, vocabulary.defaults, n=2, cutoff=0.75)
    return Problem(
        "unknown-key",
        Severity.WARNING,
        f"{vocabulary.name} {vocabulary.version} knows no key {setting.key[:80]!r}",
        hint=f"did you mean {' or '.join(near)}?" if near else "it is left out of the estimate",
        key=setting.key,
        place=setting.place,
        source=vocabulary.source,
    )


def _many_unknown(settings: Settings, keys: Sequence[str], vocabulary: Vocabulary) -> Problem:
    return Problem(
        "unknown-key",
        Severity.WARNING,
        f"{vocabulary.name} {vocabulary.version} knows none of {len(keys)} more keys",
        hint="say whose configuration it is with --from",
        key=keys[0],
        place=settings.place(keys[0]),
        source=vocabulary.source,
    )


def _removed(setting: Setting, vocabulary: Vocabulary) -> Problem:
    gone = vocabulary.removed[setting.key]
    return Problem(
        "removed-key",
        Severity.WARNING,
        f"{setting.key} is gone since release {gone.since}",
        hint=f"use {gone.instead}" if gone.instead else "leave it out",
        key=setting.key,
        place=setting.place,
        source=vocabulary.source,
    )


def _renamed(setting: Setting, vocabulary: Vocabulary) -> Iterator[Problem]:
    new = vocabulary.renamed[setting.key]
    since = f" since release {new.since}" if new.since else ""
    gone = f", and gone since {new.removed}" if new.removed else ""
    yield Problem(
        "renamed-key",
        Severity.WARNING if new.removed else Severity.NOTE,
        f"{setting.key} is called {new.to}{since}{gone}",
        hint=f"write {new.to}",
        key=setting.key,
        place=setting.place,
        source=vocabulary.source,
    )


def modelled_parent(key: str, modelled: Collection[str]) -> bool:
    """Whether a mapping that holds ``key`` is read whole."""
    return any(key.startswith(f"{each}.") for each in modelled)


def _costly_of(key: str, vocabulary: Vocabulary) -> Costly | None:
    """What ``key`` costs, or the mapping that holds it: its own entry first."""
    while key not in vocabulary.costly:
        key, dot, _ = key.rpartition(".")
        if not dot:
            return None
    return vocabulary.costly[key]


def _costly(setting: Setting, costly: Costly | None) -> Iterator[Problem]:
    if costly is None or is_harmless(setting.value, costly.harmless):
        return
    yield Problem(
        "unmodelled",
        Severity.WARNING,
        f"{setting.key} {shown_value(setting.value)} is not modelled: {costly.why}",
        hint="the verdict is unknown where this could change it",
        key=setting.key,
        place=setting.place,
        may_need_more=costly.effect in ("more", "either"),
        may_need_less=costly.effect in ("less", "either"),
    )


def is_harmless(value: Any, harmless: Collection[Any]) -> bool:
    """Whether ``value`` is one of ``harmless``, however it is spelled; null always is."""
    if value is None:
        return True
    if any(_same(value, each) for each in harmless):
        return True
    # An empty list or mapping asks for nothing.
    return isinstance(value, list | dict) and not value


def _same(value: Any, other: Any) -> bool:
    if isinstance(other, bool):
        word = str(value).strip().lower()
        return word in FALSE if not other else word in ("true", "yes", "on", "1")
    if isinstance(value, bool) or other is None:
        return False
    if isinstance(value, int | float) and isinstance(other, int | float):
        return float(value) == float(other)
    return bool(str(value).strip().lower() == str(other).strip().lower())


def shown_value(value: Any) -> str:
    """A value as a message shows it: short."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 40 else text[:37] + "..."
