"""What one visitor of the page has in front of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Final

from ftplan.errors import InputError
from ftplan.results import Plan
from ftplan.workflows.checking import Checked
from ftplan.workflows.picturing import Picture

NAME_CHARACTERS: Final = 40


@dataclass(frozen=True)
class Settings:
    """How the page is served: ``hosted`` for strangers, without training; else runs are in the folder ``runs``."""

    hosted: bool = False
    runs: Path = Path("ftplan-runs")


class Session:
    """``asked`` is the newest request: an answer to an older one that comes late is dropped. ``shown`` is the state of
    the run that was sent last. No dataclass, which Gradio would take for data to send to the browser.
    """

    def __init__(self) -> None:
        self.asked: object = None
        self.picture: Picture | None = None
        self.kept: Picture | None = None
        self.checked: Checked | None = None
        self.shown: object = None

    @property
    def plan(self) -> Plan | None:
        """The exact plan that is in front of the visitor."""
        picture = self.picture
        return picture.answer if picture is not None and isinstance(picture.answer, Plan) else None


def uploaded(file: str) -> Path:
    """A file that the visitor dropped into the page; raises InputError for any other, and for one that is gone."""
    path = Path(file).resolve()
    if not path.is_relative_to(page_folder().resolve()) or not path.is_file():
        raise InputError(f"{path.name} is not here any more", hint="drop it again", field="file")
    return path


def page_folder() -> Path:
    """What is dropped into the page and made for it: private to this user, and gone with this process."""
    return Path(_folder().name)


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="ftplan-page-")


def zipped(files: Mapping[str, str], name: str) -> str:
    """``files`` as a ZIP archive in a folder of its own, for the browser to fetch; its path."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if path.endswith(".sh") else 0o644) << 16
            archive.writestr(entry, text)
    safe = "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:NAME_CHARACTERS]
    file = Path(mkdtemp(dir=page_folder())) / f"{safe}.zip"
    file.write_bytes(buffer.getvalue())
    return str(file)
