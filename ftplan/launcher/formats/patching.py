"""From one configuration to another in the words of somebody's own files: the edits, and the files once edited.

The edits are the difference of what a format writes for the two, so that no framework needs code of its own for them;
the edited files are read again, and only edits that then say what was meant are given out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from ftplan.errors import ConfigFileError, FtplanError
from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.editing import edited, edited_script
from ftplan.launcher.formats.files import SUFFIXES, Files
from ftplan.launcher.formats.given import ACCELERATE_FILE, DEEPSPEED_FILE, Emitted, Target
from ftplan.launcher.formats.sources import Source
from ftplan.spec import RunConfig
from ftplan.verdicts import Change

ENVIRONMENT: Final = "environment"
COMMAND_LINE: Final = "command line"
EVAL_KEYS: Final = ("per_device_eval_batch_size", "eval_batch_size")
"""Names of an evaluation's own micro-batch."""


@dataclass(frozen=True)
class Patch:
    """Edits, the whole text of each file after them, and files that are new, by path."""

    changes: tuple[Change, ...]
    texts: Mapping[Path, str] = field(default_factory=dict)
    new_files: Mapping[str, str] = field(default_factory=dict)


def patch(
    source: Source, old: RunConfig, new: RunConfig, target: Target, files: Files, *, evaluation: bool = False
) -> Patch | None:
    """The edits that turn ``source``, which says ``old``, into ``new``; None where its words cannot say that.

    With ``evaluation`` an evaluation's own micro-batch becomes that of training, as ``new`` has it.
    """
    emit = source.format.emit
    if emit is None:
        return None
    try:
        after = emit(new, target)
        before = emit(old, target)
    except FtplanError:
        return None
    try:
        return _Writer(source, files, before, after, EVAL_KEYS if evaluation else ()).patch()
    except ConfigFileError:  # values that are shared through an alias, for one
        return None


class _Writer:
    """Collects the edits of one patch."""

    def __init__(
        self, source: Source, files: Files, before: Emitted, after: Emitted, always: tuple[str, ...] = ()
    ) -> None:
        self.source = source
        self.files = files
        self.before = before
        self.after = after
        self.always = always
        self.changes: list[Change] = []
        self.texts: dict[Path, str] = {}
        self.new_files: dict[str, str] = {}

    def patch(self) -> Patch:
        flat = _flat if self.source.format.nested else dict
        main = _difference(flat(self.before.main), flat(self.after.main))
        main |= {key: self.after.main[key] for key in self.always if key in self.after.main}
        self._deepspeed(main)
        self._accelerate()
        self._main(main)
        for name, value in _difference(self.before.environment, self.after.environment).items():
            old = self.source.given.launch.variable(name) or None
            if old != value:
                self.changes.append(Change(ENVIRONMENT, name, old, value))
        return Patch(tuple(self.changes), self.texts, self.new_files)

    def _main(self, changes: Mapping[str, Any]) -> None:
        given = self.source.given
        settings = given.settings
        changes = {key: value for key, value in changes.items() if value is not None or key in settings}
        changes = {key: value for key, value in changes.items() if settings.value(key) != value}
        document = given.document
        if document is None:
            self._edit_command(changes)
            return
        # What a command states beside the file has the last word, and has to change there.
        beside = {key for key in changes if key in settings and settings[key].place.file != document.name}
        in_file = {key: each for key, each in changes.items() if key not in beside}
        if in_file:
            self._edit(document, in_file)
        if beside:
            self._edit_command({key: each for key, each in changes.items() if key in beside})

    def _edit(self, document: Document, changes: Mapping[str, Any]) -> None:
        for key, value in changes.items():
            entry = document.entries.get(key)
            self.changes.append(Change(document.name, key, entry.value if entry else None, value))
        self.texts[document.path] = edited(document, changes)

    def _edit_command(self, changes: Mapping[str, Any]) -> None:
        launch = self.source.given.launch
        changes = {key: _as_word(value) for key, value in _whole(changes, self.after.main).items()}
        for key, value in changes.items():
            place = launch.script or COMMAND_LINE
            self.changes.append(Change(place, f"--{key}", self.source.given.settings.value(key), value))
        if launch.script:
            path = Path(launch.script)
            if path.suffix.lower() in SUFFIXES:
                raise ConfigFileError(f"{launch.script}: a command inside is not edited", file=launch.script)
            text = self.texts[path] if path in self.texts else self.files.again(path)
            self.texts[path] = edited_script(text, launch.arguments, changes)

    def _deepspeed(self, main: dict[str, Any]) -> None:
        """A new file beside the configuration, or edits of the one it names."""
        if self.after.deepspeed is None:
            return
        named = self._document("zero_optimization")
        if named is not None and self.before.deepspeed is not None:
            changes = _difference(_flat(self.before.deepspeed), _flat(self.after.deepspeed))
            if changes:
                self._edit(named, changes)
            return
        self.new_files[DEEPSPEED_FILE] = json.dumps(self.after.deepspeed, indent=2) + "\n"
        main.setdefault("deepspeed", DEEPSPEED_FILE)

    def _accelerate(self) -> None:
        if self.after.accelerate is None:
            return
        named = self._document("distributed_type")
        if named is not None and self.before.accelerate is not None:
            changes = _difference(_flat(self.before.accelerate), _flat(self.after.accelerate))
            if changes:
                self._edit(named, changes)
            return
        self.new_files[ACCELERATE_FILE] = yaml.safe_dump(dict(self.after.accelerate), sort_keys=False)
        document = self.source.given.document
        own = shlex.quote(document.path.name) if document is not None else "..."
        command = " ".join(own if word == self.after.main_name else word for word in self.after.command)
        self.changes.append(Change(COMMAND_LINE, "launch with", None, command))

    def _document(self, sign: str) -> Document | None:
        """The library's file among those that were read."""
        return next((each for each in self.files.documents.values() if sign in each.data), None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _whole(changes: Mapping[str, Any], main: Mapping[str, Any]) -> dict[str, Any]:
    """Changes inside of mappings as changes of the whole mapping: options have no dotted names."""
    return {key.partition(".")[0]: main.get(key.partition(".")[0]) if "." in key else changes[key] for key in changes}


def _as_word(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping) else value


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What changes, with None for what goes."""
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return {**changed, **{key: None for key in before if key not in after}}
