"""docs/gallery.md as text, and what is wrong with it and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scripts.gallery_parts.catalogue import ENTRIES, SECTIONS, Entry
from scripts.gallery_parts.drawing import refuse_local, svg_problems

PICTURE_BYTES: Final = 120_000
ALL_BYTES: Final = 2_500_000
ABOUT: Final = """\
# Gallery

What ftplan looks like. `python scripts/gallery.py` makes all of it by running the commands that stand here, in a real
terminal and in Chromium: times and sizes differ from run to run. `--only NAME …` makes some; `--check` looks at what is
there.
"""
LISTED: Final = re.compile(r'src="gallery/([^"]+)"')
PHONE: Final = "phone"
PNG: Final = b"\x89PNG\r\n\x1a\n"


def document() -> str:
    """The page: an index, then every picture with its command and a sentence."""
    index = [
        f"- {section}: " + ", ".join(f"[{entry.name}](#{entry.name})" for entry in entries)
        for section, entries in SECTIONS.items()
    ]
    parts = [ABOUT, "\n".join(index) + "\n"]
    for section, entries in SECTIONS.items():
        parts += [f"## {section}\n", *(_entry(entry) for entry in entries)]
    return "\n".join(parts)


def _entry(entry: Entry) -> str:
    lines = [f"### {entry.name}", "", entry.says, "", "```", f"$ {entry.command}", "```", ""]
    for file, what in entry.files.items():
        caption = what.removeprefix(f"{entry.command}, ").removeprefix(f"{entry.says} ")
        width = ' width="390"' if PHONE in caption else ""
        lines += [f"{caption}:", "", f'<img src="gallery/{file}"{width} alt="{what}">', ""]
    return "\n".join(lines)


def problems(docs: Path) -> list[str]:
    """What is wrong in the folder ``docs``: the page, its pictures, or one without the other."""
    page, folder = docs / "gallery.md", docs / "gallery"
    text = page.read_text("utf-8") if page.exists() else ""
    listed = LISTED.findall(text)
    here = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    found = [] if text == document() else ["gallery.md is not what the script writes"]
    found += [f"{name} is listed {listed.count(name)} times" for name in sorted(set(listed)) if listed.count(name) > 1]
    found += [f"{name} is listed, but not there" for name in sorted({*listed} - {*here})]
    found += [f"{name} is there, but not listed" for name in sorted({*here} - {*listed})]
    sizes = {name: (folder / name).stat().st_size for name in here}
    found += [f"{name} has {size:,} bytes" for name, size in sizes.items() if size > PICTURE_BYTES]
    if (total := sum(sizes.values())) > ALL_BYTES:
        found.append(f"all pictures together have {total:,} bytes")
    return [*found, *(problem for name in here for problem in _problems(folder / name))]


def _problems(file: Path) -> Iterator[str]:
    if file.suffix == ".svg":
        text = file.read_text("utf-8")
        yield from (f"{file.name} {problem}" for problem in svg_problems(text))
        try:
            refuse_local(re.sub(r"<[^>]+>", " ", text), file.name, words=())
        except ValueError as error:
            yield str(error)
    elif file.suffix != ".png" or file.read_bytes()[: len(PNG)] != PNG:
        yield f"{file.name} is neither SVG nor PNG"


def remove_orphans(folder: Path) -> None:
    """Delete pictures that no entry has any more."""
    wanted = {file for entry in ENTRIES for file in entry.files}
    for file in folder.iterdir():
        if file.suffix in (".svg", ".png") and file.name not in wanted:
            file.unlink()
