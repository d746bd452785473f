"""How processes are started: launchers peeled off a command line, what they say of devices, and the program inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.launcher_options import (
    ACCELERATE_FLAGS,
    DEEPSPEED_FLAGS,
    TORCHRUN_FLAGS,
    handed_on_by_axolotl,
)
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.launcher.formats.words import Command, Word
from ftplan.verdicts import Place

WRAPPERS: Final[Mapping[str, frozenset[str]]] = {
    "env": frozenset({"-u", "--unset", "-C"}),
    "nohup": frozenset(),
    "time": frozenset({"-o", "-f"}),
    "srun": frozenset({"-N", "-n", "-p", "-J", "-o", "-e", "-w", "-A", "-c", "-t", "-G"}),
    "numactl": frozenset(),
    "stdbuf": frozenset(),
    "nice": frozenset({"-n"}),
    "uv": frozenset({"--with", "--python", "-p"}),
    "poetry": frozenset(),
    "conda": frozenset({"-n", "-p", "--name", "--prefix"}),
    "bash": frozenset(),
    "sh": frozenset(),
}
"""Commands that run another one, with those of their options that take a value."""

MOST_DIGITS: Final = 5
PYTHON_VALUES: Final = frozenset({"-W", "-X"})


@dataclass(frozen=True)
class Launch:
    """A command line taken apart.

    ``launcher`` is torchrun, accelerate, deepspeed, srun or the program's own name, empty where nothing is known of how
    processes start. ``per_node`` and ``nodes`` are None where the command does not say. ``visible`` are the devices
    that it sees, None for all but those that are ``hidden``. ``options`` are the launcher's own; ``program`` is the
    script, module or command with its subcommand; ``arguments`` are what that gets.
    """

    launcher: str = ""
    nodes: int | None = None
    per_node: int | None = None
    visible: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()
    environment: Mapping[str, Word] = field(default_factory=dict)
    options: Settings = field(default_factory=Settings)
    program: str = ""
    is_module: bool = False
    arguments: tuple[Word, ...] = ()
    script: str = ""

    def variable(self, name: str) -> str:
        """The value of an environment variable, empty if it is not set or cannot be told."""
        word = self.environment.get(name)
        return word.text if word is not None and not word.unresolved else ""

    @property
    def expands_segments(self) -> bool:
        """Whether torch's allocator is told to use expandable segments, by its present name or its older one."""
        stated = self.variable("PYTORCH_ALLOC_CONF") or self.variable("PYTORCH_CUDA_ALLOC_CONF")
        return "expandable_segments:true" in stated.lower()


def taken_apart(command: Command, script: str = "") -> Launch:
    """The launch that ``command`` is; ``script`` is the file it stands in."""
    words, environment, through = _unwrapped(list(command.words), dict(command.environment))
    launch = Launch(environment=environment, script=script, launcher=through)
    launch = replace(launch, visible=_visible(launch))
    return _from_environment(_program(words, launch))


def _visible(launch: Launch) -> tuple[str, ...] | None:
    """What CUDA_VISIBLE_DEVICES names; set to nothing it hides every device."""
    word = launch.environment.get("CUDA_VISIBLE_DEVICES")
    return None if word is None or word.unresolved else _listed(word.text)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _unwrapped(words: list[Word], environment: dict[str, Word]) -> tuple[list[Word], dict[str, Word], str]:
    """The words without what only runs the rest, and what ran it where that starts processes."""
    through = ""
    while words:
        name = _name(words[0])
        if name in ("bash", "sh") and not any(word.text == "-c" for word in words[:2]):
            break
        if name not in WRAPPERS:
            break
        valued = WRAPPERS[name]
        through = "srun" if name == "srun" else through
        words.pop(0)
        while words and (words[0].text.startswith("-") or "=" in words[0].text or words[0].text == "run"):
            word = words.pop(0)
            if not word.text.startswith("-") and "=" in word.text:
                key, _, value = word.text.partition("=")
                environment[key] = replace(word, text=value)
            elif word.text in valued and words:
                words.pop(0)
            elif word.text == "-c" and name in ("bash", "sh"):
                break
    return words, environment, through


def _name(word: Word) -> str:
    return word.text.rsplit("/", 1)[-1]


def _program(words: list[Word], launch: Launch) -> Launch:
    if not words:
        return launch
    name = _name(words[0])
    if name.startswith("python") or name == "torchrun":
        return _python(words, launch)
    if name == "accelerate" and len(words) > 1 and words[1].text == "launch":
        return _accelerate(words[2:], launch)
    if name == "deepspeed":
        return _deepspeed(words[1:], launch)
    if name == "tune" and len(words) > 1 and words[1].text == "run":
        options, rest = _options(words[2:], TORCHRUN_FLAGS, launch)
        return _torchrun_shape(replace(launch, launcher="tune", options=options), rest, "tune run")
    if name == "axolotl":
        return _axolotl(words[1:], launch)
    return replace(launch, launcher=launch.launcher or name, program=name, arguments=tuple(words[1:]))


def _axolotl(words: list[Word], launch: Launch) -> Launch:
    """``axolotl train file --launcher torchrun -- options``, the last of them its launcher's (cli/utils/train.py)."""
    texts = [word.text for word in words]
    at = texts.index("--") if "--" in texts else len(texts)
    chosen = next((after.lstrip("-") for before, after in pairwise(texts[:at]) if before == "--launcher"), "accelerate")
    chosen = next((text.partition("=")[2] for text in texts[:at] if text.startswith("--launcher=")), chosen)
    inside, handed = _handed_on(words[:at])
    options, _ = _options([*handed, *words[at + 1 :]], TORCHRUN_FLAGS | ACCELERATE_FLAGS, launch)
    launch = replace(launch, launcher=chosen, options=options, program="axolotl", arguments=tuple(inside))
    if chosen == "torchrun":
        return replace(_torchrun_shape(launch, [], "axolotl"), arguments=launch.arguments)
    if chosen == "python":
        return replace(launch, nodes=1, per_node=1)
    return _accelerate_shape(launch)


def _handed_on(words: Sequence[Word]) -> tuple[list[Word], list[Word]]:
    """axolotl's own words, and those that it gives to the launcher because it does not know them."""
    own: list[Word] = []
    handed: list[Word] = []
    chosen = own
    for word in words:
        if word.text.startswith("--"):
            name = word.text.lstrip("-").partition("=")[0].replace("-", "_")
            chosen = handed if name in handed_on_by_axolotl() else own
            chosen.append(word)
            if "=" in word.text or name in ACCELERATE_FLAGS | TORCHRUN_FLAGS:
                chosen = own
        else:
            chosen.append(word)
            chosen = own
    return own, handed


def _python(words: list[Word], launch: Launch) -> Launch:
    name = _name(words[0])
    rest = words[1:]
    is_module = False
    if name != "torchrun":
        while rest and rest[0].text.startswith("-"):
            flag = rest.pop(0).text
            if flag == "-m":
                is_module = True
                break
            if flag in PYTHON_VALUES and rest:
                rest.pop(0)
        if not rest:
            return launch
        if not (is_module and rest[0].text in ("torch.distributed.run", "torch.distributed.launch")):
            return _inside(rest, replace(launch, launcher=launch.launcher or "python"), is_module=is_module)
        rest = rest[1:]
    options, rest = _options(rest, TORCHRUN_FLAGS, launch)
    return _torchrun_shape(replace(launch, launcher="torchrun", options=options), rest)


def _torchrun_shape(launch: Launch, rest: list[Word], program: str = "") -> Launch:
    """What torchrun's options say; a variable PET_… is the default of each (torch distributed/argparse_util.py)."""
    options = launch.options
    nodes = (options.text("nnodes") or launch.variable("PET_NNODES")).split(":")[-1]
    ranks = options.text("nproc_per_node") or launch.variable("PET_NPROC_PER_NODE")
    launch = replace(launch, nodes=_count(nodes, options, "nnodes"), per_node=_count(ranks, options, "nproc_per_node"))
    if launch.launcher == "torchrun":
        if "nnodes" not in options:
            launch = replace(launch, nodes=launch.nodes or 1)
        if "nproc_per_node" not in options:
            launch = replace(launch, per_node=launch.per_node or 1)
    if program:
        return replace(launch, program=program, arguments=tuple(rest))
    return _inside(rest, launch, is_module="module" in options or "m" in options)


def _accelerate(words: list[Word], launch: Launch) -> Launch:
    options, rest = _options(words, ACCELERATE_FLAGS, launch)
    launch = _accelerate_shape(replace(launch, launcher="accelerate", options=options))
    return _inside(rest, launch, is_module="module" in options or "m" in options)


def _accelerate_shape(launch: Launch) -> Launch:
    options = launch.options
    nodes = _count(options.text("num_machines"), options, "num_machines")
    total = _count(options.text("num_processes"), options, "num_processes")
    return replace(launch, nodes=nodes, per_node=total // (nodes or 1) if total else None)


def _deepspeed(words: list[Word], launch: Launch) -> Launch:
    options, rest = _options(words, DEEPSPEED_FLAGS, launch)
    nodes = _count(options.text("num_nodes"), options, "num_nodes")
    per_node = _count(options.text("num_gpus"), options, "num_gpus")
    launch = replace(launch, launcher="deepspeed", options=options, nodes=nodes, per_node=per_node)
    return _inside(rest, _chosen(launch), is_module="module" in options)


def _chosen(launch: Launch) -> Launch:
    """The devices of --include and --exclude; beside any of these options the variable is dropped (runner.py)."""
    options = launch.options
    included, excluded = (options.text(key) or options.text(key[0]) for key in ("include", "exclude"))
    if not (included or excluded or launch.nodes or launch.per_node):
        return launch
    launch = replace(launch, visible=None)
    hosts = dict(each.partition(":")[::2] for each in included.split("@") if each)
    slots = {_listed(each) for each in hosts.values()}
    if len(slots) == 1 and (visible := slots.pop()):
        launch = replace(launch, visible=visible, per_node=len(visible))
    if len(hosts) > 1:
        launch = replace(launch, nodes=len(hosts))
    _, _, hidden = excluded.partition(":")
    return replace(launch, hidden=_listed(hidden) if "@" not in excluded else ())


def unequal_hosts(launch: Launch) -> str:
    """The option of DeepSpeed's launcher that leaves its machines with unequal devices; empty if none does."""
    for key in ("include", "exclude"):
        given = launch.options.text(key) or launch.options.text(key[0])
        hosts = [each.partition(":")[2] for each in given.split("@") if each]
        whole = key == "exclude" and any(not each for each in hosts)
        named = key == "exclude" and any(not each.startswith("localhost") for each in given.split("@") if each)
        if launch.launcher == "deepspeed" and (whole or named or len({_listed(each) for each in hosts}) > 1):
            return key
    return ""


def _inside(words: list[Word], launch: Launch, *, is_module: bool) -> Launch:
    """The program that a launcher starts; a console script such as ``$(which axolotl)`` counts by its name."""
    if not words:
        return launch
    return replace(launch, program=words[0].text, is_module=is_module, arguments=tuple(words[1:]))


def _options(words: Sequence[Word], flags: frozenset[str], launch: Launch) -> tuple[Settings, list[Word]]:
    """A launcher's own options, which end with the first word that is none."""
    found: dict[str, Setting] = {}
    rest = list(words)
    while rest and rest[0].text.startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.text.lstrip("-").partition("=")
        key = name.replace("-", "_")
        place = Place(launch.script, word.line)
        if equals:
            found[key] = Setting(key, value, place, word.unresolved)
        elif key in flags or not rest or rest[0].text.startswith("--"):
            found[key] = Setting(key, True, place)
        else:
            taken = rest.pop(0)
            found[key] = Setting(key, taken.text, place, taken.unresolved)
    return Settings(found), rest


def _count(text: str, options: Settings, key: str) -> int | None:
    """A number of processes or machines; None where it is left to the launcher (auto, gpu) or to a shell."""
    if not text or text.startswith("$") or text in ("auto", "gpu", "cpu", "True"):
        return None
    count = _usual_count(text)
    if count is not None:
        return count
    place = options.place(key)
    where = place.file or "the command line"
    raise ConfigFileError(f"{where}: {key} is {text[:40]!r}, not a number", file=place.file, line=place.line, field=key)


def _usual_count(text: str) -> int | None:
    """The number that ``text`` spells, if there can be as many processes; None otherwise."""
    return int(text) or None if text.isdecimal() and len(text) <= MOST_DIGITS else None


def _from_environment(launch: Launch) -> Launch:
    """Numbers that programs read from the environment (llamafactory-cli, swift), where the command has none."""
    nodes = launch.nodes
    per_node = launch.per_node
    if nodes is None:
        nodes = _usual_count(launch.variable("NNODES"))
    if per_node is None:
        per_node = _usual_count(launch.variable("NPROC_PER_NODE"))
    return replace(launch, nodes=nodes, per_node=per_node)


def launches(found: Iterator[Command], script: str) -> Iterator[Launch]:
    """Every command that could be a training, taken apart."""
    for command in found:
        launch = taken_apart(command, script)
        if launch.program:
            yield launch
