"""Files that refer to one another: found near the file that names them, each read once, none twice in a circle."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import Document, parse_document
from ftplan.launcher.formats.reading import read_config, shown

MOST_FILES: Final = 16
"""More than any training's configuration is spread over."""
MOST_PARENTS: Final = 8
SUFFIXES: Final = (".json", ".jsonc", ".yaml", ".yml")
"""Of the files that a configuration may refer to: what else it names is not opened, and so not quoted in an error."""


class Files:
    """The files that one check reads, in the order they were read; ``texts`` take the place of files on disk.

    With ``closed`` there are no others: nothing on disk is looked for or read, and a reference means the text of that
    name, wherever it says that it lies.
    """

    def __init__(self, texts: Mapping[Path, str] | None = None, *, closed: bool = False) -> None:
        self.read: list[str] = []
        self.documents: dict[str, Document] = {}
        self._texts = dict(texts or {})
        self._closed = closed
        self._modules: dict[str, str] = {}

    def document(self, path: Path, *, asked_by: str = "") -> Document:
        """The document in ``path``, read once however often it is named; raises ConfigFileError."""
        name = shown(path)
        if asked_by and path.suffix.lower() not in SUFFIXES:
            hint = f"configurations end in {', '.join(SUFFIXES)}"
            raise ConfigFileError(f"{name} (named in {shown(asked_by)}) is not read", file=name, hint=hint)
        if name not in self.documents:
            self.documents[name] = parse_document(self.text(path, asked_by=asked_by), path)
        return self.documents[name]

    def text(self, path: Path, *, asked_by: str = "") -> str:
        """The text in ``path``; raises ConfigFileError if it was read before: a script that calls itself has no end."""
        self._note(path, asked_by)
        return self.again(path, asked_by=asked_by)

    def again(self, path: Path, *, asked_by: str = "") -> str:
        """The text in ``path``, however often it was read: for who edits it. Raises ConfigFileError."""
        known = self._texts.get(self._own(path))
        if known is None and self._closed:
            told = f" (named in {shown(asked_by)})" if asked_by else ""
            hint = "give it, too: " + ", ".join(sorted(shown(each) for each in self._texts)) + " is all there is"
            raise ConfigFileError(f"{shown(path)}{told} is not among the files", file=shown(path), hint=hint)
        return read_config(path, asked_by=asked_by) if known is None else known

    def has(self, path: Path) -> bool:
        """Whether ``path`` can be read: one of the texts or, unless there is nothing else, a file on disk."""
        return self._own(path) in self._texts or (not self._closed and is_file(path))

    @property
    def here(self) -> Path:
        """The folder that a command line is given in; the texts' own where there is nothing else."""
        return Path() if self._closed else Path.cwd()

    def module(self, path: Path) -> str:
        """The text of a Python file, which a script may start more than once."""
        name = shown(path)
        if name not in self._modules:
            self._modules[name] = self.text(path)
        return self._modules[name]

    def find(self, reference: str, base: Path) -> Path:
        """The file that ``reference`` means in ``base``: see `referred`."""
        path = (base if not base.suffix else base.parent) / reference
        if path in self._texts or self._closed:
            return self._own(path)
        return referred(reference, base)

    def over(self, texts: Mapping[Path, str]) -> Files:
        """The same files before any was read, with ``texts`` in the place of some of them or beside them."""
        return Files({**self._texts, **texts}, closed=self._closed)

    def _own(self, path: Path) -> Path:
        """``path`` as the texts have it: where there is nothing else, the one of its name."""
        if path in self._texts or not self._closed:
            return path
        return next((known for known in self._texts if known.name == path.name), path)

    def _note(self, path: Path, asked_by: str) -> None:
        name = shown(path)
        if name in self.read:
            raise ConfigFileError(
                f"{name} is named twice, the second time in {shown(asked_by or 'the command')}", file=name
            )
        if len(self.read) >= MOST_FILES:
            raise ConfigFileError(f"more than {MOST_FILES} files refer to one another", file=name)
        self.read.append(name)


def referred(reference: str, base: Path) -> Path:
    """The file that ``reference`` means in a file or folder ``base``.

    Frameworks resolve it against the folder they are started in, which is not known here: the file's own folder is
    tried first, then each folder above it, then the current one. Where it is nowhere, the first of these is returned,
    and reading it says so.
    """
    path = Path(reference)
    if path.is_absolute():
        return path
    folder = base if base.is_dir() else base.parent
    return next((each / path for each in _around(folder) if is_file(each / path)), folder / path)


def _around(folder: Path) -> list[Path]:
    """``folder``, those above it, the current one; fewer where one of them is gone, or a circle of links."""
    found = [folder]
    with suppress(OSError, RuntimeError):
        found += list(folder.resolve().parents)[:MOST_PARENTS]
    with suppress(OSError):
        found.append(Path.cwd())
    return found


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file, and can be one: no name is too long or too odd to be asked about."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
