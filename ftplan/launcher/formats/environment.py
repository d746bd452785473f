"""What stands around a training's own arguments and is not modelled: variables that switch, launchers' options."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ftplan.launcher.formats.audit import shown_value
from ftplan.launcher.formats.launch import Launch, unequal_hosts
from ftplan.launcher.formats.launcher_options import COUNTS, OWN
from ftplan.launcher.formats.partial import Shape
from ftplan.launcher.formats.settings import FALSE
from ftplan.verdicts import NOWHERE, Place, Problem, Severity

LLAMAFACTORY: Final = ("llamafactory",)
WITHOUT_ACCELERATE: Final = ("torchtune", "cookbook")
"""Formats whose trainings do not go through accelerate's variables."""
ALL_CARDS: Final = ("nvidia-smi", "device_count")
"""What is asked for the number of a machine's cards."""


@dataclass(frozen=True)
class Switch:
    """A variable that changes what runs unless it is off.

    ``of`` are the formats that read it, all that start accelerate where it is empty. ``shardings`` are the beginnings
    of those with which it changes nothing; a launcher in ``replaced_by`` sets it itself.
    """

    name: str
    why: str
    of: tuple[str, ...] = ()
    off: frozenset[str] = FALSE
    shardings: tuple[str, ...] = ()
    replaced_by: tuple[str, ...] = ()


NO_FP8: Final = FALSE | {"bf16", "fp16"}
SWITCHES: Final = (
    Switch("USE_MCA", "it trains by mcore_adapter, which shards as Megatron does", LLAMAFACTORY),
    Switch("USE_MEGATRON_BRIDGE", "it trains by Megatron Bridge, which shards as Megatron does", LLAMAFACTORY),
    Switch("USE_V1", "LLaMA-Factory's v1 trainer reads a vocabulary of its own", LLAMAFACTORY),
    Switch("USE_RAY", "Ray starts the processes where its own settings say", LLAMAFACTORY),
    Switch("USE_KT", "KTransformers keeps experts on the host", LLAMAFACTORY),
    Switch("ACCELERATE_USE_FSDP", "accelerate shards by FSDP as other variables say", shardings=("fsdp", "hsdp")),
    Switch("ACCELERATE_USE_DEEPSPEED", "accelerate starts DeepSpeed as other variables say", shardings=("zero",)),
    Switch("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM shards and trains in ways of its own"),
    Switch("ACCELERATE_USE_PARALLELISM_CONFIG", "weights, activations or sequences are split over ranks"),
    Switch("ACCELERATE_USE_CPU", "the training runs on the CPU"),
    Switch(
        "ACCELERATE_DYNAMO_BACKEND",
        "compiled graphs fuse and recompute activations, and compiling takes scratch memory",
        replaced_by=("accelerate",),
    ),
    Switch(
        "ACCELERATE_MIXED_PRECISION",
        "linear layers work on fp8 copies of weights and inputs",
        off=NO_FP8,
        replaced_by=("accelerate",),
    ),
)


def around_problems(launch: Launch, framework: str, known: Shape, sharding: str) -> Iterator[Problem]:
    """Problems with ``launch`` itself; ``known`` are the processes that a scheduler or a file says beside it."""
    yield from _switched(launch, framework, sharding)
    yield from _open_counts(launch, known)
    yield from _open_variables(launch, known)
    yield from _unknown_options(launch)
    if key := unequal_hosts(launch):
        yield _problem("unmodelled", f"--{key} names machines or leaves them unequal GPUs, which is not modelled", key)
    if "autotuning" in launch.options and launch.launcher == "deepspeed":
        yield _problem("unmodelled", "--autotuning tries other stages and batches than the file's", "autotuning")


def _switched(launch: Launch, framework: str, sharding: str) -> Iterator[Problem]:
    for switch in SWITCHES:
        word = launch.environment.get(switch.name)
        others = switch.of and framework not in switch.of
        if word is None or others or (not switch.of and framework in WITHOUT_ACCELERATE):
            continue
        place = Place(launch.script, word.line)
        if launch.launcher in switch.replaced_by or (switch.shardings and sharding.startswith(switch.shardings)):
            continue
        if word.unresolved:
            yield _unresolved(switch.name, word.unresolved, place)
        elif word.text.strip().lower() not in switch.off:
            message = f"{switch.name}={shown_value(word.text)} is not modelled: {switch.why}"
            yield _problem("unmodelled", message, switch.name, "leave it out, or set it to 0", place)


def _open_counts(launch: Launch, known: Shape) -> Iterator[Problem]:
    """Numbers of processes that only a shell knows; how many cards nvidia-smi lists is all of them."""
    for key in COUNTS.get(launch.launcher, ()):
        setting = launch.options.get(key)
        machines = key in ("nnodes", "num_nodes")
        stated = known.nodes if machines else known.per_node
        if setting is None or not setting.unresolved or stated:
            continue
        if machines or not any(each in setting.unresolved for each in ALL_CARDS):
            yield _unresolved(key, setting.unresolved, setting.place)


def _open_variables(launch: Launch, known: Shape) -> Iterator[Problem]:
    for name, stated in _counting(launch, known):
        word = launch.environment.get(name)
        if word is None or not word.unresolved or stated:
            continue
        if not name.endswith("NPROC_PER_NODE") or not any(each in word.unresolved for each in ALL_CARDS):
            yield _unresolved(name, word.unresolved, Place(launch.script, word.line))


def _counting(launch: Launch, known: Shape) -> Sequence[tuple[str, object]]:
    """Variables from which this launch takes numbers, each with what is stated in its place."""
    nodes, per_node = launch.nodes or known.nodes, launch.per_node or known.per_node
    options = launch.options
    found: list[tuple[str, object]] = [("CUDA_VISIBLE_DEVICES", options.value("gpu_ids") or known.visible)]
    if launch.launcher in ("llamafactory-cli", "lmf", "swift"):
        found += [("NNODES", nodes), ("NPROC_PER_NODE", per_node)]
    if launch.launcher in ("torchrun", "tune"):
        found += [("PET_NNODES", "nnodes" in options), ("PET_NPROC_PER_NODE", "nproc_per_node" in options)]
    return found


def _unknown_options(launch: Launch) -> Iterator[Problem]:
    known = OWN.get(launch.launcher)
    for key in launch.options if known else ():
        if known and key not in known and launch.program != "axolotl":
            near = difflib.get_close_matches(key, known, n=2, cutoff=0.75)
            yield Problem(
                "unknown-key",
                Severity.WARNING,
                f"{launch.launcher} knows no option {key[:80]!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else "it is left out of the estimate",
                key=key,
                place=launch.options.place(key),
            )


def _unresolved(key: str, missing: str, place: Place) -> Problem:
    message = f"{key} depends on {shown_value(missing)}, which only a shell knows"
    return _problem("unresolved", message, key, "write its value, or set it in front of the command", place)


def _problem(kind: str, message: str, key: str, hint: str = "", place: Place = NOWHERE) -> Problem:
    return Problem(
        kind,
        Severity.WARNING,
        message,
        hint=hint,
        key=key,
        place=place,
        may_need_more=True,
        may_need_less=True,
    )
