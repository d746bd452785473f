"""``python -m ftplan.cli.changed``: `ftplan check` for each of several files, for hooks that get whatever has changed.

`ftplan check` takes the files that it is given together as one configuration. Here each is one of its own, and files
that are no training's are passed over with a note. Options come first, as ``--name=value`` where a value is a file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ftplan import cli
from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import load_document
from ftplan.launcher.formats.kubeflow import is_kubeflow
from ftplan.launcher.formats.recognising import framework_of
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import PARTIAL
from ftplan.launcher.formats.skypilot import is_skypilot
from ftplan.launcher.formats.sources import CONFIG_SUFFIXES, SCRIPT_SUFFIXES

SUFFIXES: Final = (*CONFIG_SUFFIXES, *SCRIPT_SUFFIXES)


def main(arguments: Sequence[str] | None = None) -> int:
    """The highest exit code of the checks; 0 where there was nothing to check."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    files = _files_at_end(given)
    options = given[: len(given) - len(files)]
    worst = 0
    for name in files:
        if reason := _no_training(Path(name)):
            sys.stderr.write(f"{name!r} is not checked: {reason}\n")
        else:
            worst = max(worst, cli.run(["check", *options, "--", name]))
    return worst


def _files_at_end(given: list[str]) -> list[str]:
    at = len(given)
    while at and not given[at - 1].startswith("--") and given[at - 1].lower().endswith(SUFFIXES):
        at -= 1
    return given[at:]


def _no_training(path: Path) -> str:
    """Why a file is no training configuration, or none by itself; empty if it may be one."""
    if path.suffix.lower() not in CONFIG_SUFFIXES:
        return ""
    try:
        data = load_document(path).data
    except ConfigFileError as error:
        return error.message
    if is_skypilot(data) or is_kubeflow(data):
        return ""
    name = framework_of(data)
    if name in PARTIAL:
        return f"a file of {name} says a part, and is read with the training that names it"
    return "" if name in FORMATS else "no training configuration that is known"


if __name__ == "__main__":
    sys.exit(main())
