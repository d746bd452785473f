"""Slurm: an sbatch script that runs one task a node, and what the directives of such a script say of its devices."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.cluster import Cluster, Wrapped, refuse, require_name
from ftplan.launcher.formats.given import LAUNCH_FILE, Target
from ftplan.launcher.formats.partial import Shape
from ftplan.launcher.formats.reading import shown
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.verdicts import Place

NAME: Final = "slurm"
MAIN: Final = "job.sbatch"
RANK: Final = "SLURM_NODEID"
SAVING_SECONDS: Final = 300
"""How long before its time is up a job is told: a step, and a checkpoint of some tens of GB on a shared disk."""
PORTS: Final = 1000
"""Jobs that share a node take ports by their number."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

SHORT: Final[Mapping[str, str]] = {
    **{"N": "nodes", "n": "ntasks", "G": "gpus", "c": "cpus_per_task", "J": "job_name", "t": "time", "p": "partition"},
    **{"A": "account", "q": "qos", "o": "output", "e": "error", "C": "constraint", "w": "nodelist", "x": "exclude"},
    **{"d": "dependency", "D": "chdir", "a": "array", "L": "licenses", "M": "clusters", "i": "input", "b": "begin"},
}
"""sbatch's one-letter options that take a value (man sbatch)."""
FLAGS: Final = frozenset(
    {
        *(
            "requeue",
            "no_requeue",
            "exclusive",
            "hold",
            "overcommit",
            "oversubscribe",
            "contiguous",
            "wait",
            "parsable",
        ),
        *("spread_job", "use_min_nodes", "verbose", "quiet", "test_only", "propagate", "ignore_pbs", "nice", "no_kill"),
        *("get_user_env", "reboot", "kill_on_invalid_dep"),
    }
)
"""Options that stand alone, or take a value only behind an equals sign."""


def script(cluster: Cluster, target: Target, *, what: str) -> str:
    """The script for ``sbatch``, submitted from the folder that holds it and `LAUNCH_FILE`, which every node runs."""
    refuse("Slurm", cluster, ("image", "namespace", "packages", "storage", "spot"), hint="Slurm jobs run as submitted")
    require_name(cluster.name, _NAME, 200, "letters, digits, and . _ -")
    directives = "\n".join(f"#SBATCH --{option}" for option in _directives(cluster, target))
    return f"""#!/usr/bin/env bash
{directives}
# {what}
# Submit it from its own folder, with the environment that trains: sbatch {MAIN}
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
{_rendezvous(cluster, target)}{_started(cluster)}"""


def _directives(cluster: Cluster, target: Target) -> Iterator[str]:
    yield f"job-name={cluster.name}"
    yield f"nodes={target.nodes}"
    yield "ntasks-per-node=1"
    yield f"gpus-per-node={target.per_node}"
    yield f"cpus-per-task={cluster.cpus_per_gpu * target.per_node}"
    if cluster.host_gib is not None:
        yield f"mem={cluster.host_gib}G"
    if cluster.seconds is not None:
        yield f"time={math.ceil(cluster.seconds / 60)}"
    for name in ("account", "partition", "qos"):
        if getattr(cluster, name):
            yield f"{name}={getattr(cluster, name)}"
    yield "output=%x-%j.log"
    yield "open-mode=append"
    yield "requeue" if cluster.requeue else "no-requeue"
    if cluster.requeue and cluster.seconds is not None:
        yield f"signal=B:USR1@{SAVING_SECONDS}"


def _rendezvous(cluster: Cluster, target: Target) -> str:
    if target.nodes == 1:
        return ""
    # The first line is not taken by head: it closes the pipe early, and under pipefail that ends the script.
    return f"""hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
MASTER_ADDR="${{hosts%%$'\\n'*}}"
MASTER_PORT="$(({cluster.port} + SLURM_JOB_ID % {min(PORTS, 2**16 - cluster.port)}))"
export MASTER_ADDR MASTER_PORT
"""


def _started(cluster: Cluster) -> str:
    """One task on each node; since Slurm 22.05 srun does not take its cores from sbatch's option."""
    step = f'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash {LAUNCH_FILE} "$@"'
    if not cluster.requeue or cluster.seconds is None:
        return f"{step}\n"
    return f"""
# Its time is nearly up: let it save, then go on in the queue.
requeue() {{
  kill -TERM "$step" || true
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}}
trap requeue USR1

{step} &
step=$!
wait "$step"
"""


def read_slurm(text: str, path: Path) -> Wrapped:
    """The commands of a script for sbatch, with the devices that its directives ask for."""
    asked = directives(text, path)
    nodes = _nodes(asked)
    per_node, device = _gpus(asked, nodes)
    total = _count_of(asked, "gpus")[0] if per_node is None else None
    if total and nodes:
        per_node, total = -(-total // nodes), None
    tasks = asked.integer("ntasks_per_node", 1, least=1)
    shape = Shape(nodes, per_node or (tasks if "ntasks_per_node" in asked and tasks > 1 else None), total)
    return Wrapped(text, shape, _environment(shape, asked), device=device)


def directives(text: str, path: Path) -> Settings:
    """The options of the lines that begin with ``#SBATCH``, up to the first command, as sbatch reads them."""
    found: dict[str, Setting] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#SBATCH"):
            words = _words(line.removeprefix("#SBATCH"), path, number)
            place = Place(shown(path), number)
            found |= {key: Setting(key, value, place) for key, value in _options(words)}
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return Settings(found)


def _words(text: str, path: Path, line: int) -> list[str]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigFileError(f"{shown(path)}: a directive has an open quote", file=str(path), line=line) from error
    if words[:1] in (["hetjob"], ["packjob"]):
        message = f"{shown(path)}: a job of unequal parts is not read"
        raise ConfigFileError(message, file=str(path), line=line, hint="state the devices by --gpus, and the command")
    return words


def _options(words: list[str]) -> Iterator[tuple[str, str | bool]]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            if equals:
                yield key, value
            elif key in FLAGS or not rest or rest[0].startswith("-"):
                yield key, True
            else:
                yield key, rest.pop(0)
        elif word.startswith("-") and word[1:2] in SHORT:
            yield SHORT[word[1]], word[2:].removeprefix("=") or (rest.pop(0) if rest else "")


def _nodes(asked: Settings) -> int | None:
    """Nodes; the fewest of a range, on which state is spread the least. Tasks without nodes leave it to Slurm."""
    if "nodes" not in asked:
        return None if asked.integer("ntasks", 1) > 1 or "gpus" in asked else 1
    match = re.match(r"(\d+)(?:[-,:].*)?$", asked.text("nodes"))
    if match is None:
        return asked.integer("nodes", 1, least=1)
    return int(match[1]) or 1


def _gpus(asked: Settings, nodes: int | None) -> tuple[int | None, str]:
    """GPUs of each node, and their type as the site calls it."""
    for key in ("gpus_per_node", "gres", "tres_per_node"):
        count, device = _count_of(asked, key)
        if count is not None:
            return count, device
    per_task, device = _count_of(asked, "gpus_per_task")
    if per_task is None:
        return None, _count_of(asked, "gpus")[1]
    if "ntasks_per_node" in asked or nodes is None:
        return per_task * asked.integer("ntasks_per_node", 1, least=1), device
    return per_task * -(-asked.integer("ntasks", nodes, least=1) // nodes), device


def _count_of(asked: Settings, key: str) -> tuple[int | None, str]:
    """The number and type of GPUs in ``8``, ``h100:8``, ``gpu:h100:8(S:0-1)`` or ``gres/gpu:8,gres/nvme:1``."""
    generic = key in ("gres", "tres_per_node")
    for item in asked.words(key):
        words = item.split("(")[0].replace("=", ":").removeprefix("gres/").split(":")
        if generic and words.pop(0) != "gpu":
            continue
        last = words[-1] if words else "1"
        if last.isascii() and last.isdecimal() and int(last) < 100_000:
            return int(last) or None, ":".join(words[:-1])
        return 1, last
    return None, ""


def _environment(shape: Shape, asked: Settings) -> dict[str, str]:
    """What Slurm sets for the script, as far as the directives say."""
    tasks = asked.integer("ntasks_per_node", 1, least=1)
    cores = asked.integer("cpus_per_task", 0)
    found = {
        "SLURM_NNODES": shape.nodes,
        "SLURM_JOB_NUM_NODES": shape.nodes,
        "SLURM_GPUS_ON_NODE": shape.per_node,
        "SLURM_GPUS_PER_NODE": shape.per_node,
        "SLURM_NTASKS_PER_NODE": tasks if "ntasks_per_node" in asked else None,
        "SLURM_NTASKS": asked.integer("ntasks", 0) or (tasks * shape.nodes if shape.nodes else None),
        "SLURM_CPUS_PER_TASK": cores or None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}
