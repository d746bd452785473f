"""What a format gets to read, and what it gives to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.launch import Launch
from ftplan.launcher.formats.partial import ANY_SHAPE, NOTHING, Partial, Shape
from ftplan.launcher.formats.settings import Settings
from ftplan.spec import RunConfig


@dataclass(frozen=True)
class Given:
    """A framework's settings as somebody wrote them.

    ``base`` is the file, or the folder, against which other files are named; ``document`` is the settings' own file if
    they have one; ``ranks`` is how many processes start in all, as far as is known when they are read. ``around`` is
    what launcher and library files beside them say, ``version`` the release that they are for, where that is known.
    """

    settings: Settings
    base: Path
    files: Files
    launch: Launch = field(default_factory=Launch)
    document: Document | None = None
    ranks: int = 1
    around: Partial = NOTHING
    version: str = ""


@dataclass(frozen=True)
class Target:
    """What a written configuration is for: devices, release, data, and what training needs beside memory."""

    nodes: int = 1
    per_node: int = 1
    version: str = ""
    dataset: str = ""
    output_dir: str = "output"
    learning_rate: float | None = None
    epochs: float = 3.0

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Emitted:
    """A configuration in a framework's own words.

    ``main`` are the settings of its own file, called ``main_name``; ``deepspeed`` and ``accelerate`` those of the files
    beside it, under the names of `artifact names`. ``command`` starts the training from the folder with these files,
    with ``environment`` set.
    """

    main: Mapping[str, Any]
    main_name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    deepspeed: Mapping[str, Any] | None = None
    accelerate: Mapping[str, Any] | None = None


DEEPSPEED_FILE = "deepspeed.json"
ACCELERATE_FILE = "accelerate.yaml"
LAUNCH_FILE = "launch.sh"


@dataclass(frozen=True)
class Format:
    """A framework's files in both directions.

    Attributes:
        name: as in ``--format``.
        title: as its users call it.
        vocabulary: the name of its vocabulary in profiles.
        parse: what settings say; raises ConfigFileError for what cannot be used.
        emit: a configuration in its words; raises CannotExpressError.
        pins: fields that its files cannot choose, with the only value they have, for a method.
        cannot_say: values of fields that its files have no words for.
        nested: its settings are known by dotted keys, as a component and its arguments are.
        shape: processes that it starts by itself where neither command nor launcher says; none known: one a device.
        around: what its own settings say of the launcher, for a framework that starts accelerate by itself.

    """

    name: str
    title: str
    vocabulary: str
    parse: Callable[[Given], Partial]
    emit: Callable[[RunConfig, Target], Emitted] | None
    pins: Callable[[str], Mapping[str, Any]] = lambda _: {}
    cannot_say: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    nested: bool = False
    shape: Callable[[Given], Shape] = lambda _: ANY_SHAPE
    around: Callable[[Given], Partial] | None = None
