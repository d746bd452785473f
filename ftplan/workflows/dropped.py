"""Files that were dropped or pasted into a page: checked by their text alone, and mended as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.reading import LARGEST_FILE, text_of
from ftplan.units import KIB
from ftplan.verdicts import Fix
from ftplan.workflows import checking, fixing
from ftplan.workflows.checking import Asked, Checked

PASTED: Final = "pasted.yaml"
PASTED_JSON: Final = "pasted.json"
CONFIGS: Final = (".yaml", ".yml", ".json")


def pasted(text: str) -> dict[str, str]:
    """``text`` as a file, by the kind that it looks like."""
    return {PASTED_JSON if text.lstrip().startswith("{") else PASTED: text} if text.strip() else {}


def read(name: str, data: bytes) -> tuple[str, str]:
    """The name and text of a file that was dropped; raises ConfigFileError for what is no text or too large."""
    own = PurePath(name.replace("\\", "/")).name or "file"
    if len(data) > LARGEST_FILE:
        raise ConfigFileError(f"{own} is larger than {LARGEST_FILE // KIB} KiB", file=own)
    return own, text_of(data, own)


def check(
    texts: Mapping[str, str], gpus: str, *, framework: str = "", model: str = "", hosted: bool = False
) -> Checked:
    """Check the training that ``texts``, files by name, configure; those that another of them names belong to it.

    Raises InputError for what cannot be read. Nothing but ``texts`` is read; ``hosted`` for strangers' files: then no
    path or hub is asked for a model either.
    """
    if not texts:
        raise ConfigFileError("nothing to check", file="", hint="paste a configuration, or drop its files")
    return checking.check(
        Asked(
            words=_main(texts),
            gpus=gpus,
            framework=framework,
            fields={"model": model} if model else {},
            texts={Path(name): text for name, text in texts.items()},
            only_catalogue=hosted,
        )
    )


def fixed(checked: Checked, fix: Fix) -> dict[str, str]:
    """The files as ``fix`` makes them, by name; raises InputError where it is no edit of files."""
    new, edited = fixing.fixed_texts(checked.case, fix)
    return {path.name: text for path, text in {**new, **edited}.items()}


def _main(texts: Mapping[str, str]) -> list[str]:
    """The files that no other one names; all where each is named by another."""
    named = {name for name in texts for other, text in texts.items() if other != name and name in text}
    heads = [name for name in texts if name not in named] or list(texts)
    scripts = [name for name in heads if PurePath(name).suffix.lower() not in CONFIGS]
    return scripts[:1] or heads
