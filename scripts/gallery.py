"""Makes docs/gallery.md and its pictures from real commands: ``python scripts/gallery.py``.

Takes some four minutes, trains the demo twice, and needs the extras train, ui and dev, and Chromium, which is looked
for in FTPLAN_CHROMIUM and on PATH.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.gallery_parts import browser, drawing, page, reports, terminal  # noqa: E402
from scripts.gallery_parts.catalogue import INPUTS, WIDE, Report, Shot, Tab, chosen  # noqa: E402
from scripts.gallery_parts.document import document, problems, remove_orphans  # noqa: E402

DOCS: Final = ROOT / "docs"
KEPT_VARIABLES: Final = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Terminals:
    """Commands in one folder, each run once."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._written: dict[tuple[str, int], str] = {}

    def run(self, command: str, code: int = 0, columns: int = WIDE) -> str:
        """What the command writes, without the folder."""
        key = (command, columns)
        if key not in self._written:
            written = terminal.run(command, self._folder, self._environment, columns, code)
            self._written[key] = drawing.neutral(written, self._folder)
        return self._written[key]

    def draw(self, shot: Shot) -> str:
        """The picture of a command."""
        if shot.after:
            self.run(shot.after)
        written = self.run(shot.command, shot.code, shot.columns)
        screen = (
            terminal.screen_with(written, shot.columns, shot.frame)
            if shot.frame
            else terminal.last_screen(written, shot.columns)
        )
        drawing.refuse_local(screen.text(), shot.name)
        return drawing.svg(screen.ansi(), shot.command, shot.columns, shot.name)


def prepared(folder: Path) -> dict[str, str]:
    """Put the examples and an ``ftplan`` of this checkout into ``folder``; the environment to run it in."""
    programs = folder / ".bin"
    programs.mkdir()
    starter = programs / "ftplan"
    starter.write_text(f"#!{sys.executable}\nimport sys\nfrom ftplan.__main__ import main\nsys.exit(main())\n", "utf-8")
    starter.chmod(0o755)
    for name in INPUTS:
        (folder / name).write_bytes((ROOT / "examples" / name).read_bytes())
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {
        **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / ".home"),
        "FTPLAN_DATA": str(folder / ".data"),
        "HF_HUB_OFFLINE": "1",
        "LANG": "C.UTF-8",
    }


def make(names: list[str]) -> None:
    """Make the pictures of these names, or all, and the page that lists them."""
    out = DOCS / "gallery"
    out.mkdir(parents=True, exist_ok=True)
    entries = chosen(names)
    with tempfile.TemporaryDirectory(prefix="ftplan-") as made:
        folder = Path(made).resolve()
        environment = prepared(folder)
        terminals = Terminals(folder, environment)
        for shot in entries:
            if isinstance(shot, Shot):
                (out / f"{shot.name}.svg").write_text(terminals.draw(shot), "utf-8")
                _tell(shot.name)
        if any(not isinstance(entry, Shot) for entry in entries):
            with browser.opened() as chromium:
                for entry in entries:
                    if isinstance(entry, Report):
                        reports.make(entry, terminals.run, folder, out, chromium)
                        _tell(entry.name)
                if tabs := frozenset(entry.name for entry in entries if isinstance(entry, Tab)):
                    page.make(tabs, folder, environment, out, chromium)
                    _tell(*sorted(tabs))
    remove_orphans(out)
    (DOCS / "gallery.md").write_text(document(), "utf-8")


BEGAN: Final = time.monotonic()


def _tell(*names: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.0f} s  {', '.join(names)}", flush=True)


def main() -> int:
    """Make the gallery, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="make these pictures alone")
    parser.add_argument("--check", action="store_true", help="look at what is there, without a browser")
    asked = parser.parse_args()
    if not asked.check:
        make(asked.only)
    found = problems(DOCS)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
