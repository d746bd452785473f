"""What readers of frameworks with words of their own share: older names, adapters' targets, rules, problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ftplan.estimators.states import OPTIMIZERS
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.verdicts import NOWHERE, Place, Problem, Severity

UNMEASURED_WITHIN: Final = 0.05
OWN_LOOP_WITHIN: Final = 0.1
"""How far a stack that was only read may be from the measured ones; assumed."""
REENTRANT_WITHIN: Final = 0.03
"""What the other way of checkpointing changes at most: the estimator's own for 60 configurations of 0.5B to 47B, both
ways, every sharding but ZeRO-3 with adapters."""
ADAPTERS_WITHIN: Final = 0.6
"""Part of the memory that adapters on all linear layers cost over one small adapter at most, likewise: 0.59."""
CHECKPOINTED_ADAPTERS_WITHIN: Final = 0.4
"""The same with checkpointing, which keeps one layer's: 0.37."""
LINEAR_ENDINGS: Final = ("proj", "qkv", "dense", "fc1", "fc2", "w1", "w2", "w3")
_GROUP: Final = re.compile(r"\(([A-Za-z_0-9]+(?:\|[A-Za-z_0-9]+){0,40})\)((?:_[A-Za-z0-9]+){0,4})")
_WORD: Final = re.compile(r"(?<![A-Za-z_0-9\\])[A-Za-z][A-Za-z_0-9]*")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_0-9.\-]+")


@dataclass(frozen=True)
class Rule:
    """A refusal of a framework at its start: the key at fault, when, why, and what to do."""

    key: str
    applies: Callable[[Settings], bool]
    message: str
    hint: str


def refused(rules: Sequence[Rule], settings: Settings, source: str) -> Iterator[Problem]:
    """A conflict for each rule that applies."""
    for rule in rules:
        if rule.applies(settings):
            yield Problem(
                "conflict",
                Severity.ERROR,
                rule.message,
                hint=rule.hint,
                key=rule.key,
                place=settings.place(rule.key),
                source=source,
            )


def unmodelled(
    settings: Settings,
    key: str,
    why: str,
    *,
    more: bool = True,
    less: bool = True,
    within: float | None = None,
    source: str = "",
) -> Problem:
    """A problem with ``key``, which may raise memory, lower it, or both."""
    return Problem(
        "unmodelled",
        Severity.WARNING,
        f"{key} is not modelled: {why}",
        hint="the verdict is unknown where this could change it",
        key=key,
        place=settings.place(key),
        source=source,
        may_need_more=more,
        may_need_less=less,
        within=within,
    )


def assumed(message: str, *, key: str = "", place: Place = NOWHERE, hint: str = "") -> Problem:
    """Something taken for granted that changes no verdict."""
    return Problem("assumption", Severity.NOTE, message, hint=hint, key=key, place=place)


def other_checkpoints(settings: Settings, key: str) -> Problem:
    """Checkpoints that are not reentrant where the stack's are."""
    return Problem(
        "assumption",
        Severity.NOTE,
        "checkpoints are estimated as reentrant ones",
        key=key,
        place=settings.place(key),
        source="the estimator's own figures for both",
        may_need_more=True,
        may_need_less=True,
        within=REENTRANT_WITHIN,
    )


def unmeasured(title: str, source: str, within: float = UNMEASURED_WITHIN) -> Problem:
    """What the loop does by itself was read in its source, and no run of it was measured.

    ``within`` is assumed: less for those that run transformers' Trainer than for loops of their own.
    """
    return Problem(
        "assumption",
        Severity.NOTE,
        f"what {title} does by itself was read from its source and not measured",
        source=source,
        may_need_more=True,
        may_need_less=True,
        within=within,
    )


def present(settings: Settings, vocabulary: str) -> Settings:
    """``settings`` with older releases' names in their present form; present names win."""
    known = load_vocabulary(vocabulary)
    renamed = {
        known.canonical(key): Setting(key, each.value, each.place, each.unresolved)
        for key, each in settings.items()
        if key in known.renamed and known.canonical(key) not in settings
    }
    return Settings({key: each for key, each in settings.items() if key not in known.renamed}).replaced(renamed)


def opened_out(given: Given, vocabulary: str) -> Settings:
    """The settings of ``given`` with the leaves of nested models in their place, as a vocabulary names them."""
    known = load_vocabulary(vocabulary)
    entries = given.document.entries if given.document is not None else {}
    found: dict[str, Setting] = {}
    for key, setting in given.settings.items():
        inside = setting.value
        if not isinstance(inside, Mapping) or key in known.costly or not _is_nested(key, known.defaults):
            found[key] = setting
            continue
        for name, value in inside.items():
            dotted = f"{key}.{name}"
            line = entries[dotted].line if dotted in entries else setting.place.line
            found[dotted] = Setting(dotted, value, Place(setting.place.file, line))
    return Settings(found)


def _is_nested(key: str, known: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{key}.") for name in known)


def optimizer_of(name: str) -> str:
    """``name``, or for one that no estimator knows a known one of its kind; the vocabulary calls it unmodelled."""
    if name in OPTIMIZERS:
        return name
    lean = any(part in name for part in ("8bit", "4bit", "fp8"))
    return "adamw_8bit" if lean else "adamw_torch"


def targets_of(names: Sequence[str]) -> tuple[str, bool]:
    """Names of modules as `RunConfig.lora_targets` has them, and whether they had to be read out of a pattern.

    A regular expression from a file is never run: its alternatives are read as text, and where they name no linear
    layer all layers are taken.
    """
    if all(_PLAIN_NAME.fullmatch(name) for name in names):
        return ",".join(names), False
    found: dict[str, None] = {}
    for text in names:
        if _PLAIN_NAME.fullmatch(text):
            found[text] = None
        for match in _GROUP.finditer(text[:1000]):
            found |= dict.fromkeys(f"{part}{match[2]}" for part in match[1].split("|"))
        found |= dict.fromkeys(_WORD.findall(text[:1000]))
    linear = [name for name in found if name.endswith(LINEAR_ENDINGS)]
    return (",".join(linear) or "all-linear"), True


def pattern_problem(settings: Settings, key: str, targets: str) -> Problem:
    """A pattern read as names covers no fewer modules than it matches."""
    named = targets != "all-linear"
    why = f"the pattern is read as {targets} in every layer" if named else "the pattern is read as all linear layers"
    return unmodelled(settings, key, why, more=False, within=ADAPTERS_WITHIN)


def expandable(variable: Callable[[str], str], names: Sequence[str], *, default: bool) -> bool:
    """Whether the first of the environment's ``names`` that is set asks for expandable segments, else ``default``."""
    stated = next(filter(None, map(variable, names)), "")
    return "expandable_segments:true" in stated.lower() if stated else default


def fsdp_words(words: Sequence[str], inside: Mapping[str, Any]) -> str | bool:
    """The words of TrainingArguments' ``fsdp``: beside FSDP2's ``reshard_after_forward`` only offload counts."""
    states = str(inside.get("version")) == "2" and inside.get("reshard_after_forward") is not None
    kept = [word for word in words if not states or word.lower() == "offload"]
    return " ".join(kept) or True
