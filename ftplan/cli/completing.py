"""Shell completion: what the Tab key offers. Facts are looked up only when it is pressed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final, get_args

VARIABLE: Final = "_FTPLAN_COMPLETE"
"""Where a shell says that it asks for completions, in click's protocol."""
COUNTS: Final = re.compile(r"(?:\d+x){0,2}", re.IGNORECASE)

Completion = Callable[[str], list[str]]


def is_asked() -> bool:
    """Whether a shell asks for completions, rather than a user for an answer."""
    return bool(os.environ.get(VARIABLE))


def command_word(environ: MutableMapping[str, str]) -> str:
    """The command whose options are completed, as the shell tells it; empty while it is still being typed."""
    if "COMP_WORDS" in environ:
        mend_equals_signs(environ)
        words, at = environ["COMP_WORDS"].split(), int(environ["COMP_CWORD"])
        return words[1] if len(words) > 1 and at > 1 else ""
    line = environ.get("_TYPER_COMPLETE_ARGS", "")
    words = line.split()
    return words[1] if len(words) > 2 or (len(words) == 2 and line.endswith(" ")) else ""


def mend_equals_signs(environ: MutableMapping[str, str]) -> None:
    """Bash takes ``--model=Qw`` for three words: make it two, as ``--model Qw`` is."""
    words, at = environ["COMP_WORDS"].split("\n"), int(environ["COMP_CWORD"])
    signs = [place for place, word in enumerate(words) if word == "=" and words[place - 1].startswith("--")]
    environ["COMP_WORDS"] = "\n".join(word for place, word in enumerate(words) if place not in signs)
    environ["COMP_CWORD"] = str(at - sum(place < at for place in signs))


def beginning_with(typed: str, names: Iterable[str]) -> Iterator[str]:
    """The ``names`` that begin as ``typed`` in any case, which their beginning keeps: a shell compares it exactly."""
    spelled: dict[str, str] = {}
    for name in names:
        key = name.lower()
        if key.startswith(typed.lower()) and (key not in spelled or spelled[key].islower()):
            spelled[key] = name
    yield from (typed + name[len(typed) :] for name in spelled.values())


def models(incomplete: str) -> list[str]:
    """Names of the catalogue: hub ids, and once a letter is there all that a model is called."""
    from ftplan.profiles.models import list_models

    entries = list_models()
    if not incomplete:
        return [entry.id for entry in entries]
    names = (name for entry in entries for name in (entry.id, *entry.aliases, *entry.same_shape_ids))
    return list(beginning_with(incomplete, names))


def gpus(incomplete: str) -> list[str]:
    """Inventories: the last group gets a card of the catalogue or a size, after its count."""
    last = incomplete.rpartition("+")[2]
    counts = COUNTS.match(last)
    assert counts is not None
    before = incomplete[: len(incomplete) - len(last) + counts.end()]
    whole = ("local",) if not before else ()
    found = beginning_with(last[counts.end() :], (*whole, *_cards(), "cpu"))
    return [before + name for name in found]


def cards(incomplete: str) -> list[str]:
    """Cards joined by commas."""
    return _listed(incomplete, _cards())


def _cards() -> tuple[str, ...]:
    from ftplan.profiles.gpus import list_gpus
    from ftplan.profiles.size_classes import list_size_classes

    return (*list_gpus(), *list_size_classes())


def _listed(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in beginning_with(last, names)]


def field(name: str, spec: str = "RunConfig") -> Completion:
    """The values of a field of one of `ftplan.spec`'s types."""

    def complete(incomplete: str) -> list[str]:
        from ftplan import spec as specs

        return list(beginning_with(incomplete, get_args(getattr(specs, spec).model_fields[name].annotation)))

    return complete


def constant(module: str, name: str, *others: str) -> Completion:
    """The values of a Literal, or the names in a collection, that a module of ours holds; and ``others``."""

    def complete(incomplete: str) -> list[str]:
        from importlib import import_module

        found: Any = getattr(import_module(module), name)
        return list(beginning_with(incomplete, (*others, *(get_args(found) or found))))

    return complete


def metrics(incomplete: str) -> list[str]:
    """Metrics joined by commas."""
    from ftplan.launcher.predict_job import Metric

    return _listed(incomplete, get_args(Metric))
