"""Checkpoints are complete or absent: a manifest, written last, says which files belong to one and how large they are.

A save can be cut short at any byte. Everything here therefore looks at `MANIFEST` only: a folder without it, or with
files that do not match it, is no checkpoint, is never resumed from and never counts as one that is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ftplan.files import sampled_sha256, sync

MANIFEST: Final = "ftplan-manifest.json"
PREFIX: Final = "checkpoint-"
DAMAGED: Final = "damaged-"
"""How the name begins of a checkpoint that was set aside."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: after ``step`` optimizer steps, saved by ``world_size`` ranks."""

    path: Path
    step: int
    world_size: int
    global_batch: int


def seal(folder: Path, *, step: int, world_size: int, global_batch: int) -> None:
    """Declare ``folder`` complete: flush every file and folder to disk, then write the manifest atomically."""
    files = {str(path.relative_to(folder)): _describe(path) for path in _files(folder)}
    assert files, f"nothing was saved to {folder}"
    for nested in (path for path in folder.rglob("*") if path.is_dir()):
        sync(nested)
    document = {"step": step, "world_size": world_size, "global_batch": global_batch, "files": files}
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / MANIFEST)
    sync(folder)
    sync(folder.parent)


def read(folder: Path) -> Checkpoint | None:
    """The checkpoint in ``folder`` if it is complete and its files match the manifest, else None."""
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
        files = dict(document["files"])
        checkpoint = Checkpoint(
            folder, int(document["step"]), int(document["world_size"]), int(document["global_batch"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return checkpoint if all(_matches(folder / name, said) for name, said in files.items()) else None


def complete(root: Path) -> list[Checkpoint]:
    """The complete checkpoints under ``root``, newest first."""
    found = [checkpoint for folder in folders(root) if (checkpoint := read(folder)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def latest_complete(root: Path) -> Checkpoint | None:
    """The complete checkpoint under ``root`` with the highest step."""
    by_step = sorted(folders(root), key=step_of, reverse=True)
    return next((checkpoint for folder in by_step if (checkpoint := read(folder)) is not None), None)


def prune(root: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints; leaves incomplete folders alone."""
    assert keep >= 1, "the only good checkpoint is never deleted"
    for checkpoint in complete(root)[keep:]:
        _delete(checkpoint.path)


def discard_unfinished(root: Path) -> None:
    """Delete what a killed run was still saving or already deleting, before another save could mix with it."""
    for folder in folders(root):
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder)


def set_aside_damaged(root: Path) -> list[Path]:
    """Rename checkpoints that do not match their manifest; returns what they are called now.

    They are not deleted: what cannot be read at this moment may be readable later, from a network's disk for one.
    """
    return [
        _set_aside(folder, f"{DAMAGED}{folder.name}")
        for folder in folders(root)
        if (folder / MANIFEST).exists() and read(folder) is None
    ]


def set_aside(root: Path) -> Path | None:
    """Move every checkpoint under ``root`` out of the way of a run that cannot resume from them; returns where to."""
    if not root.exists():
        return None
    return _set_aside(root, f"{root.name}-before")


def folders(root: Path) -> list[Path]:
    """The folders of checkpoints under ``root``, complete or not."""
    return [path for path in root.glob(f"{PREFIX}*") if path.is_dir() and step_of(path) >= 0]


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name; -1 for another folder's."""
    digits = folder.name.removeprefix(PREFIX)
    return int(digits) if digits.isascii() and digits.isdecimal() else -1


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and MANIFEST not in path.name)


def _describe(path: Path) -> dict[str, Any]:
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": sampled_sha256(path)}


def _matches(path: Path, said: Mapping[str, Any]) -> bool:
    try:
        if path.stat().st_size != said["bytes"]:
            return False
        # Earlier versions left the hash of large files out.
        return said["sha256"] is None or said["sha256"] == sampled_sha256(path)
    except (OSError, KeyError, TypeError):
        return False


def _set_aside(folder: Path, name: str) -> Path:
    """Rename ``folder`` to ``name`` and the first number that is free; returns its new path."""
    number = 1
    while (aside := folder.with_name(f"{name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    sync(aside.parent)
    return aside


def _delete(folder: Path) -> None:
    # Without its manifest a folder is no checkpoint, so a kill halfway through the deletion leaves no false one.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
