"""Whether edited files say what they should: they are read again before anyone is told of the edits."""

from __future__ import annotations

from typing import Final

from ftplan.errors import FtplanError
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.patching import COMMAND_LINE, ENVIRONMENT, Patch
from ftplan.launcher.formats.sources import Source, opened, overridden
from ftplan.spec import RunConfig

FOLLOWS: Final = frozenset({"padding", "loss_path", "model", "evaluates"})
"""Fields that follow from others or that no fix changes."""
BY_LAUNCH: Final = frozenset({"sharding", "offload", "precision", "zero_overlap"})
"""Fields that a launcher's new file decides, which only a new command names."""


def says(source: Source, made: Patch, old: RunConfig, new: RunConfig, target: Target, files: Files) -> bool:
    """Whether the files edited as ``made`` says say ``new``, where they said ``old``.

    What stands in the environment or on a command line is not in a file, and is taken as it is shown. A field that
    neither the edit nor the new configuration changes may differ: the user stated it beside the files, or it was put
    right for the model (names of LoRA targets, attention).
    """
    elsewhere = _elsewhere(made)
    base = source.given.base if not source.given.base.suffix else source.given.base.parent
    texts = {**made.texts, **{base / name: text for name, text in made.new_files.items()}}
    try:
        again = overridden(opened(source.words, files.over(texts), source.framework), source.stated)
        said = again.understood(target.ranks).fields
    except FtplanError:
        return False
    before = source.understood(target.ranks).fields
    fields = [name for name in said if name in RunConfig.model_fields and name not in FOLLOWS | elsewhere]
    wrong = [name for name in fields if said[name] != getattr(new, name)]
    return all(said[name] == before.get(name) and getattr(old, name) == getattr(new, name) for name in wrong)


def _elsewhere(made: Patch) -> frozenset[str]:
    """Fields that edits outside of files decide."""
    found: frozenset[str] = frozenset({"expandable_segments"})
    if any(change.file == COMMAND_LINE and change.key == "launch with" for change in made.changes):
        found |= BY_LAUNCH
    if any(change.file == COMMAND_LINE and change.key.startswith("--") for change in made.changes):
        found |= frozenset(RunConfig.model_fields)
    if any(change.file == ENVIRONMENT for change in made.changes):
        found |= {"expandable_segments"}
    return found
