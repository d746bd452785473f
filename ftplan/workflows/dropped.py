"""Files that were dropped or pasted into a page: checked by their text alone, and mended as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.files import MOST_FILES
from ftplan.launcher.formats.reading import LARGEST_FILE, shown, text_of
from ftplan.units import KIB
from ftplan.verdicts import Fix
from ftplan.workflows import checking, fixing
from ftplan.workflows.checking import Asked, Checked

PASTED: Final = "pasted.yaml"
PASTED_JSON: Final = "pasted.json"
CONFIGS: Final = (".yaml", ".yml", ".json")


def pasted(text: str) -> dict[str, str]:
    """``text`` as a file, by the kind that it looks like; raises ConfigFileError as `read` does."""
    if not text.strip():
        return {}
    name = PASTED_JSON if text.lstrip().startswith("{") else PASTED
    return dict([read(name, text.encode("utf-8", "surrogatepass"))])


def read(name: str, data: bytes) -> tuple[str, str]:
    """The name and text of a file that was dropped; raises ConfigFileError for what is no text or too large."""
    own = PurePath(name.replace("\\", "/")).name or "file"
    if len(data) > LARGEST_FILE:
        raise ConfigFileError(f"{shown(own)} is larger than {LARGEST_FILE // KIB} KiB", file=shown(own))
    return own, text_of(data, shown(own))


def texts_of(pairs: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """The texts of files that were dropped together, by name; raises ConfigFileError for what cannot be told apart."""
    texts: dict[str, str] = {}
    for count, (name, data) in enumerate(pairs, start=1):
        _require_few(count)
        own, text = read(name, data)
        if own in texts:
            hint = "files are known by name alone here: drop one of the two, or give it another name"
            raise ConfigFileError(f"two of the files are called {shown(own)}", file=shown(own), hint=hint)
        texts[own] = text
    return texts


def _require_few(count: int) -> None:
    """Raise ConfigFileError for more files than any training has."""
    if count > MOST_FILES:
        hint = "drop the training's own file, and those that it names"
        raise ConfigFileError(f"more than {MOST_FILES} files were dropped", file="", hint=hint)


def check(
    texts: Mapping[str, str], gpus: str, *, framework: str = "", model: str = "", hosted: bool = False
) -> Checked:
    """Check the training that ``texts``, files by name, configure; those that another of them names belong to it.

    Raises InputError for what cannot be read, and for more than `MOST_FILES`. Nothing but ``texts`` is read; ``hosted``
    for strangers' files: then no path or hub is asked for a model either.
    """
    if not texts:
        raise ConfigFileError("nothing to check", file="", hint="paste a configuration, or drop its files")
    _require_few(len(texts))
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
    named = {name for name in texts for other, text in texts.items() if other != name and _names(text, name)}
    heads = [name for name in texts if name not in named] or list(texts)
    scripts = [name for name in heads if PurePath(name).suffix.lower() not in CONFIGS]
    return scripts[:1] or heads


def _names(text: str, name: str) -> bool:
    """Whether ``text`` holds the whole of ``name``: neither mytrain.yaml nor train.yaml.bak names train.yaml."""
    own = re.escape(name)
    # What stands before is looked at last: a pattern that begins with plain text is found fastest.
    return re.search(rf"{own}(?![\w+-]|\.\w)(?<![\w.+-]{own})", text) is not None
