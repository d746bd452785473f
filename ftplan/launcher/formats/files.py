"""Files that refer to one another: found near the file that names them, each read once, none twice in a circle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import Document, parse_document
from ftplan.launcher.formats.reading import read_config, shown

MOST_FILES: Final = 16
"""More than any training's configuration is spread over."""
MOST_PARENTS: Final = 8


class Files:
    """The files that one check reads, in the order they were read; ``texts`` take the place of files on disk."""

    def __init__(self, texts: Mapping[Path, str] | None = None) -> None:
        self.read: list[str] = []
        self.documents: dict[str, Document] = {}
        self._texts = dict(texts or {})

    def document(self, path: Path, *, asked_by: str = "") -> Document:
        """The document in ``path``, read once however often it is named; raises ConfigFileError."""
        name = shown(path)
        if name not in self.documents:
            self.documents[name] = parse_document(self.text(path, asked_by=asked_by), path)
        return self.documents[name]

    def text(self, path: Path, *, asked_by: str = "") -> str:
        """The text in ``path``; raises ConfigFileError if it was read before: a script that calls itself has no end."""
        self._note(path, asked_by)
        known = self._texts.get(path)
        return read_config(path, asked_by=asked_by) if known is None else known

    def find(self, reference: str, base: Path) -> Path:
        """The file that ``reference`` means in ``base``: see `referred`."""
        path = (base if not base.suffix else base.parent) / reference
        return path if path in self._texts else referred(reference, base)

    def _note(self, path: Path, asked_by: str) -> None:
        name = shown(path)
        if name in self.read:
            raise ConfigFileError(f"{name} is named twice, the second time in {asked_by or 'the command'}", file=name)
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
    tried = [folder, *list(folder.resolve().parents)[:MOST_PARENTS], Path.cwd()]
    for each in tried:
        try:
            if (each / path).is_file():
                return each / path
        except (OSError, ValueError):
            break
    return folder / path
