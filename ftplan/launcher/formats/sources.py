"""From what a user gives, files or a command line, to one framework's settings with everything that they refer to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ftplan.errors import ConfigFileError, UnknownNameError
from ftplan.launcher.formats import accelerate, deepspeed
from ftplan.launcher.formats.arguments import argument_settings
from ftplan.launcher.formats.cluster import Wrapped
from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.environment import around_problems
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Format, Given
from ftplan.launcher.formats.kubeflow import is_kubeflow, read_kubeflow
from ftplan.launcher.formats.launch import Launch, launches, taken_apart
from ftplan.launcher.formats.partial import NOTHING, Partial, Shape
from ftplan.launcher.formats.python_source import Script, read_script
from ftplan.launcher.formats.reading import shown
from ftplan.launcher.formats.recognising import PROGRAMS, framework_of, framework_of_launch
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.settings import Setting, Settings, document_settings
from ftplan.launcher.formats.skypilot import is_skypilot, read_skypilot
from ftplan.launcher.formats.slurm import read_slurm
from ftplan.launcher.formats.words import Word, as_command, commands
from ftplan.profiles.frameworks import load_vocabulary

CONFIG_SUFFIXES: Final = (".yaml", ".yml", ".json")
SCRIPT_SUFFIXES: Final = (".sh", ".bash", ".slurm", ".sbatch", ".sub")
NOT_A_TRAINING: Final = {
    "plan": "",
    "llamafactory-v1": "LLaMA-Factory's v1 trainer has a vocabulary of its own, which is not read yet",
}
TRAINING_WORDS: Final = {"llamafactory": ("train",), "swift": ("sft", "pt"), "trl": ("sft",), "axolotl": ("train",)}
"""Subcommands that train by supervised fine-tuning."""
SBATCH: Final = re.compile(r"^#SBATCH\b", re.MULTILINE)
SCHEDULERS: Final = ((is_skypilot, read_skypilot), (is_kubeflow, read_kubeflow))
"""Schedulers' own files: how one is known, and what reads the command inside."""


@dataclass(frozen=True)
class Source:
    """A configuration as it was given, by ``words``, and what the user ``stated`` beside them.

    ``around`` is what launcher and library files say beside the framework's own.
    """

    format: Format
    given: Given
    around: Partial = NOTHING
    words: tuple[str, ...] = ()
    framework: str = ""
    stated: Settings = field(default_factory=Settings)

    @property
    def shape(self) -> Shape:
        """Processes as the command or the launcher's file states them."""
        launch = self.given.launch
        stated = Shape(launch.nodes, launch.per_node).over(self.around.shape).over(self.format.shape(self.given))
        # accelerate's gpu_ids take the place of the variable.
        seen = Shape(visible=self.around.shape.visible, hidden=launch.hidden).over(Shape(visible=launch.visible))
        if self.is_alone:
            return replace(seen, nodes=1, per_node=1)
        visible = len(seen.visible) if seen.visible else None
        return replace(seen, nodes=stated.nodes, per_node=stated.per_node or visible, total=stated.total)

    @property
    def is_alone(self) -> bool:
        """Whether ``python script.py`` starts one process, whatever devices there are."""
        return self.given.launch.launcher == "python" and self.around.shape.per_node is None

    def understood(self, ranks: int) -> Partial:
        """The fields that all of it says for so many processes."""
        part = self.format.parse(replace(self.given, ranks=ranks, around=self.around)).over(self.around)
        if self.around.fields.get("gradient_checkpointing"):
            # FSDP's own checkpointing counts, whatever the trainer's is.
            part = replace(part, fields={**part.fields, "gradient_checkpointing": True})
        launch, sharding = self.given.launch, str(part.fields.get("sharding", ""))
        return part.having(*around_problems(launch, self.format.name, self.around.shape, sharding))


def opened(words: Sequence[str], files: Files, framework: str = "") -> Source:
    """The source that ``words`` are: configuration files with ``key=value`` overrides, a script, or a command line.

    ``framework`` says whose files they are where that cannot be told. Raises ConfigFileError.
    """
    if framework and framework not in FORMATS:
        raise UnknownNameError("framework", framework, FORMATS, field="from")
    return replace(_opened(words, files, framework), words=tuple(words), framework=framework)


def _opened(words: Sequence[str], files: Files, framework: str) -> Source:
    first = Path(words[0])
    if len(words) == 1 and first.suffix.lower() in SCRIPT_SUFFIXES:
        return _script(first, files, framework)
    if first.suffix.lower() in CONFIG_SUFFIXES:
        return _documents(words, files, framework)
    if first.suffix.lower() == ".py":
        words = ["python", *words]
    launch = taken_apart(as_command(list(words)))
    found = _started(launch, files, files.here, framework)
    if found is None:
        told = " ".join(words)[:80]
        hint = f"say whose it is with --from: {', '.join(FORMATS)}"
        raise ConfigFileError(f"{told!r} starts no training that is known", file="", hint=hint)
    return found


def _script(path: Path, files: Files, framework: str) -> Source:
    """The last training that a shell script starts."""
    found = _last_training(path, files, framework)
    if found is None:
        hint = f"say whose it is with --from: {', '.join(FORMATS)}"
        raise ConfigFileError(f"{shown(path)} starts no training that is known", file=str(path), hint=hint)
    return found


def _last_training(path: Path, files: Files, framework: str) -> Source | None:
    text = files.text(path)
    wrapped = read_slurm(text, path) if SBATCH.search(text) else Wrapped(text)
    return _inside(wrapped, path, files, framework)


def _inside(wrapped: Wrapped, path: Path, files: Files, framework: str) -> Source | None:
    """The last training of a script or of a scheduler's file, with the processes that the scheduler starts."""
    found = None
    for launch in launches(commands(wrapped.text, wrapped.environment), str(path)):
        found = _started(launch, files, path, framework) or found
    if found is None:
        return None
    return replace(found, around=replace(found.around, shape=found.around.shape.over(wrapped.shape)))


def _started(launch: Launch, files: Files, base: Path, framework: str) -> Source | None:
    """The training that ``launch`` starts; None where it starts none."""
    if launch.program in ("bash", "sh"):
        inner = next((word for word in launch.arguments if not word.text.startswith("-")), None)
        if inner is not None and inner.text.lower().endswith(SCRIPT_SUFFIXES):
            return _last_training(files.find(inner.text, base), files, framework)
        return None
    settings, others = argument_settings(launch.arguments, launch.script)
    name = framework or framework_of_launch(launch, frozenset(settings))
    named = [word for word in others if word.text.lower().endswith(CONFIG_SUFFIXES)]
    if "config" in settings and str(settings["config"].value).lower().endswith(CONFIG_SUFFIXES):
        named.append(Word(str(settings["config"].value), settings["config"].place.line))
    wanted = TRAINING_WORDS.get(name)
    command = next((word.text for word in others if word not in named), "")
    if wanted and launch.program in ("llamafactory-cli", "lmf", "swift", "trl", "axolotl") and command not in wanted:
        return None
    documents = [files.document(files.find(word.text, base), asked_by=launch.script or "the command") for word in named]
    if not name and documents:
        name = framework_of(documents[0].data)
    own = name == "trl" or launch.program.rsplit("/", 1)[-1] not in PROGRAMS
    if launch.program.endswith(".py") and own:
        return _python(launch, settings, documents, files, base, name)
    if name not in FORMATS:
        return None
    return _source(FORMATS[name], settings, documents, launch, files, base)


def _python(
    launch: Launch, settings: Settings, documents: list[Document], files: Files, base: Path, name: str
) -> Source | None:
    """A script of somebody's own: its literal arguments, read without running it, under those of the command."""
    path = files.find(launch.program, base)
    found = read_script(files.module(path), path) if files.has(path) else Script()
    if found.other or not (found.framework or name in FORMATS):
        _require_training(launch, files, path, found)
        return None
    if name not in ("", "transformers", "trl") and not found.framework:
        return _source(FORMATS[name], settings, documents, launch, files, base)
    known = found.framework or name
    flags = found.under(settings, load_vocabulary(known).defaults)
    return _source(FORMATS[known], flags, documents, launch, files, base)


def _require_training(launch: Launch, files: Files, path: Path, found: Script) -> None:
    """Raise ConfigFileError for a script that trains otherwise, unless it is one of several commands."""
    if launch.script or not files.has(path):
        return
    name = shown(path)
    if found.other:
        raise ConfigFileError(f"{name} trains by {found.other}, which is no supervised fine-tuning", file=str(path))
    hint = "read are scripts with transformers' TrainingArguments or TRL's SFTConfig"
    raise ConfigFileError(f"{name} trains by a loop of its own, or not at all", file=str(path), hint=hint)


def _source(
    chosen: Format, flags: Settings, documents: list[Document], launch: Launch, files: Files, base: Path
) -> Source:
    main = documents[0] if documents else None
    written = document_settings(main, nested=chosen.nested) if main else Settings()
    flags = Settings({key: each for key, each in flags.items() if key != "config" or main is None})
    here = main.path if main else base
    given = Given(written.replaced(flags), here, files, launch, main)
    around = _around(launch, files, base)
    return Source(chosen, given, chosen.around(given).over(around) if chosen.around else around)


def _around(launch: Launch, files: Files, base: Path) -> Partial:
    """What the launcher's own options and its configuration file say."""
    if launch.launcher != "accelerate":
        precision = launch.variable("ACCELERATE_MIXED_PRECISION").lower()
        return Partial({"precision": precision}) if precision in ("bf16", "fp16") else Partial()
    return accelerate.parse_launch(launch.options, files, base, asked_by=launch.script)


def _documents(words: Sequence[str], files: Files, framework: str) -> Source:
    """Files given together: a framework's own, with accelerate's or DeepSpeed's beside it."""
    overrides, others = argument_settings([Word(word) for word in words])
    documents = [files.document(Path(word.text)) for word in others]
    if not documents:
        raise ConfigFileError(f"{words[0][:80]!r} is a setting without a file", file="", hint="name the file first")
    if len(documents) == 1 and (scheduled := _scheduled(documents[0], files, framework)) is not None:
        return scheduled
    around = Partial()
    main: Document | None = None
    name = ""
    for document in documents:
        kind = framework_of(document.data) or framework
        if kind == "accelerate" and framework != "accelerate":
            around = accelerate.parse(document, files).over(around)
        elif kind == "deepspeed" and framework != "deepspeed":
            around = deepspeed.parse(document).over(around)
        elif main is not None:
            raise ConfigFileError(f"{document.name} and {main.name} are both a training's own file", file=document.name)
        else:
            main, name = document, framework or kind
    return _of_documents(name, main, around, overrides, documents, files)


def _scheduled(document: Document, files: Files, framework: str) -> Source | None:
    """The training inside a SkyPilot task or a Kubeflow TrainJob; None for another file."""
    reader = next((read for is_one, read in SCHEDULERS if is_one(document.data)), None)
    if reader is None:
        return None
    found = _inside(reader(document), document.path, files, framework)
    if found is None:
        raise ConfigFileError(f"{document.name} starts no training that is known", file=document.name)
    return found


def _of_documents(
    name: str, main: Document | None, around: Partial, overrides: Settings, documents: list[Document], files: Files
) -> Source:
    if main is None:
        kind = framework_of(documents[0].data)
        given = Given(overrides, documents[0].path, files, document=documents[0])
        return Source(FORMATS[kind], given, around)
    if NOT_A_TRAINING.get(name):
        raise ConfigFileError(f"{main.name}: {NOT_A_TRAINING[name]}", file=main.name)
    if name not in FORMATS:
        hint = f"say whose it is with --from: {', '.join(FORMATS)}"
        raise ConfigFileError(f"{main.name} is no framework's training configuration", file=main.name, hint=hint)
    chosen = FORMATS[name]
    found = _source(chosen, overrides, [main], Launch(), files, main.path)
    return Source(chosen, found.given, around.over(found.around))


def overridden(source: Source, given: Mapping[str, Setting]) -> Source:
    """``source`` with settings that the user states beside it."""
    settings = source.given.settings.replaced(given)
    return replace(source, given=replace(source.given, settings=settings), stated=Settings({**source.stated, **given}))
