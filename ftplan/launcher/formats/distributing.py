"""A command that starts one machine's processes, as the script that each of several machines runs.

The nodes find each other by torchrun's static rendezvous: the first hosts the store, ranks follow the scheduler's
numbers, and no node has to know its own name, which the c10d backend does. Restarts are the scheduler's.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats.cluster import Cluster
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.launcher.formats.launcher_options import ACCELERATE_FLAGS, TORCHRUN_FLAGS

TORCHRUN_MODULES: Final = ("torch.distributed.run", "torch.distributed.launch")
BY_ENVIRONMENT: Final = ("llamafactory-cli", "lmf", "swift")
"""Programs that start torchrun themselves, with NNODES, NODE_RANK, NPROC_PER_NODE, MASTER_ADDR and MASTER_PORT
(LLaMA-Factory launcher.py, ms-swift cli/main.py)."""
SHAPE_OPTIONS: Final = ("standalone", "nnodes", "nproc_per_node", "node_rank")
RENDEZVOUS_OPTIONS: Final = ("rdzv_", "master_")
COLLECTIVE_TIMEOUT: Final = "ddp_timeout"
"""Of transformers' TrainingArguments, which axolotl has, too."""


@dataclass(frozen=True)
class Expanded:
    """A word that the shell fills in; it is written as it is, and must hold nothing but our own text."""

    text: str


Part = str | Expanded


def written(words: Sequence[Part]) -> str:
    """The words as shell text."""
    return " ".join(word.text if isinstance(word, Expanded) else shlex.quote(word) for word in words)


def timed(inner: Emitted, target: Target, cluster: Cluster) -> Emitted:
    """``inner`` with the time that a collective may take, where its settings can say so."""
    has_it = "per_device_train_batch_size" in inner.main or "base_model" in inner.main
    if target.ranks == 1 or not has_it or COLLECTIVE_TIMEOUT in inner.main:
        return inner
    return replace(inner, main={**inner.main, COLLECTIVE_TIMEOUT: cluster.collective_seconds})


def node_script(inner: Emitted, target: Target, cluster: Cluster, *, rank: str, what: str) -> str:
    """The script that every node runs: with its number in the variable ``rank``, and MASTER_ADDR and MASTER_PORT."""
    lines = ["#!/usr/bin/env bash", f"# {what}", "set -euo pipefail", 'cd "$(dirname "$0")"']
    command: Sequence[Part] = inner.command
    if target.nodes > 1:
        lines += [f'export NODE_RANK="${rank}" NNODES={target.nodes} NPROC_PER_NODE={target.per_node}']
        command = on_nodes(inner, target, cluster)
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment(inner, target, cluster).items()]
    return "\n".join([*lines, f'exec {written(command)} "$@"']) + "\n"


def environment(inner: Emitted, target: Target, cluster: Cluster) -> dict[str, str]:
    """Variables of the processes. NCCL finds its way alone unless an interface is named."""
    found = {"OMP_NUM_THREADS": str(cluster.cpus_per_gpu)}
    if cluster.interface and target.nodes > 1:
        found |= {"NCCL_SOCKET_IFNAME": cluster.interface, "GLOO_SOCKET_IFNAME": cluster.interface}
    return {**found, **_without_shape(inner.environment, target)}


def _without_shape(given: Mapping[str, str], target: Target) -> dict[str, str]:
    """Without what the script sets itself for several nodes."""
    own = ("NNODES", "NPROC_PER_NODE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if target.nodes > 1 else ()
    return {name: value for name, value in given.items() if name not in own}


def on_nodes(inner: Emitted, target: Target, cluster: Cluster) -> tuple[Part, ...]:
    """The command of each of several nodes; raises CannotExpressError for a launcher that has no way to them."""
    words = list(inner.command)
    for matches, rewrite in _LAUNCHERS:
        if matches(words):
            return tuple(rewrite(words, target, cluster))
    name = " ".join(words[:2])
    hint = "start it by torchrun or accelerate, or take the devices of one machine"
    raise CannotExpressError(name[:60], {"nodes": target.nodes}, hint=hint)


def _torchrun_options(target: Target, cluster: Cluster) -> list[Part]:
    return [
        f"--nnodes={target.nodes}",
        f"--nproc_per_node={target.per_node}",
        Expanded('--node_rank="$NODE_RANK"'),
        Expanded('--master_addr="$MASTER_ADDR"'),
        Expanded('--master_port="$MASTER_PORT"'),
        f"--rdzv_conf=timeout={cluster.rendezvous_seconds}",
    ]


def _torchrun(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    start = 1 if _name(words[0]) == "torchrun" else 3
    return [*words[:start], *_torchrun_options(target, cluster), *_kept(words[start:])]


def _tune(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    """``tune run`` is standalone unless it is given an endpoint."""
    endpoint = Expanded('--rdzv_endpoint="$MASTER_ADDR:$MASTER_PORT"')
    options = [each for each in _torchrun_options(target, cluster) if "--master" not in _text(each)]
    return [*words[:2], *options, "--rdzv_backend=static", endpoint, *_kept(words[2:])]


def _kept(words: Sequence[str]) -> Iterator[str]:
    """torchrun's own words without those that say where and how many."""
    options, program = _options(words, TORCHRUN_FLAGS)
    for option in options:
        name = _option_name(option[0])
        if name not in SHAPE_OPTIONS and not name.startswith(RENDEZVOUS_OPTIONS):
            yield from option
    yield from program


def _options(words: Sequence[str], flags: frozenset[str]) -> tuple[list[Sequence[str]], Sequence[str]]:
    """A launcher's options, each with its value, and the words of the program behind them."""
    found = []
    at = 0
    while at < len(words) and words[at].startswith("-"):
        alone = "=" in words[at] or _option_name(words[at]) in flags
        found.append(words[at : at + (1 if alone else 2)])
        is_module = _option_name(words[at]) in ("m", "module")
        at += len(found[-1])
        if is_module:
            break
    return found, words[at:]


def _option_name(word: str) -> str:
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def _accelerate_options(target: Target) -> list[Part]:
    return [
        f"--num_machines={target.nodes}",
        f"--num_processes={target.ranks}",
        Expanded('--machine_rank="$NODE_RANK"'),
        Expanded('--main_process_ip="$MASTER_ADDR"'),
        Expanded('--main_process_port="$MASTER_PORT"'),
    ]


def _accelerate(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    """Ours behind its own: of an option that is given twice the last counts. ``-m`` ends them."""
    del cluster
    options, program = _options(words[2:], ACCELERATE_FLAGS)
    module: Sequence[str] = options.pop() if options and _option_name(options[-1][0]) in ("m", "module") else ()
    own = [word for option in options for word in option]
    return [*words[:2], *own, *_accelerate_options(target), *module, *program]


def _trl(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    """trl hands the options it does not know to accelerate (trl/cli/commands/training.py)."""
    del cluster
    return [*words, *_accelerate_options(target)]


def _axolotl(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    """As ``axolotl train`` starts it, whose words would hide the nodes (axolotl cli/utils/train.py)."""
    own, options = _split(words[2:], "--")
    launcher = "accelerate"
    if "--launcher" in own and own.index("--launcher") + 1 < len(own):
        at = own.index("--launcher")
        launcher = own[at + 1]
        own = [*own[:at], *own[at + 2 :]]
    inside = ["-m", "axolotl.cli.train", *own]
    if launcher == "accelerate" and options:
        return _accelerate(["accelerate", "launch", *options, *inside], target, cluster)
    return _torchrun(["torchrun", *(options if launcher == "torchrun" else []), *inside], target, cluster)


def _split(words: list[str], mark: str) -> tuple[list[str], list[str]]:
    at = words.index(mark) if mark in words else len(words)
    return words[:at], words[at + 1 :]


def _by_environment(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    del target, cluster
    return list(words)


def _native(words: list[str], target: Target, cluster: Cluster) -> list[Part]:
    """ftplan reads what the scheduler tells the node, and MASTER_ADDR and MASTER_PORT."""
    del target
    return [*words, "--rdzv-timeout", str(cluster.rendezvous_seconds)]


def _name(word: str) -> str:
    return word.rsplit("/", 1)[-1]


def _text(part: Part) -> str:
    return part.text if isinstance(part, Expanded) else part


_Rewrite = Callable[[list[str], Target, Cluster], list[Part]]
_LAUNCHERS: Final[tuple[tuple[Callable[[list[str]], bool], _Rewrite], ...]] = (
    (lambda words: _name(words[0]) == "torchrun", _torchrun),
    (lambda words: words[1:2] == ["-m"] and words[2:3] != [] and words[2] in TORCHRUN_MODULES, _torchrun),
    (lambda words: words[:2] == ["accelerate", "launch"], _accelerate),
    (lambda words: words[:2] == ["axolotl", "train"], _axolotl),
    (lambda words: words[0] == "trl", _trl),
    (lambda words: words[:2] == ["tune", "run"], _tune),
    (lambda words: words[:2] == ["ftplan", "run"], _native),
    (lambda words: _name(words[0]) in BY_ENVIRONMENT, _by_environment),
)
"""How the nodes are told to a launcher, by its first words."""
