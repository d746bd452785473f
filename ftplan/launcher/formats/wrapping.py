"""A training of any format for a scheduler: its files, the script of every node, and the scheduler's own file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ftplan import __version__
from ftplan.errors import InputError, UnknownNameError
from ftplan.launcher.formats import kubeflow, skypilot, slurm
from ftplan.launcher.formats.cluster import Cluster, require_plain
from ftplan.launcher.formats.distributing import node_script, timed
from ftplan.launcher.formats.given import LAUNCH_FILE, Emitted, Target
from ftplan.launcher.formats.rendering import as_yaml, settings_files

PLAN_FILE: Final = "plan.json"
RANKS: Final = {slurm.NAME: slurm.RANK, skypilot.NAME: skypilot.RANK, kubeflow.NAME: kubeflow.RANK}
"""The schedulers, with the variable in which each tells a node its number."""


def wrap(
    kind: str, inner: Emitted, target: Target, cluster: Cluster, *, beside: dict[str, str] | None = None
) -> dict[str, str]:
    """The files by name that hand ``inner`` to the scheduler ``kind``; ``beside`` are further ones that it needs.

    Raises CannotExpressError for what the scheduler, or the command on several nodes, has no way to say, InputError for
    a name that would be refused, or read as something else.
    """
    if kind not in RANKS:
        raise UnknownNameError("scheduler", kind, RANKS, field="format")
    require_plain(cluster)
    _require_words((*inner.command, *cluster.packages))
    what = f"Written by ftplan {__version__}: {target.nodes} node(s) of {target.per_node} GPU(s)."
    inner = timed(inner, target, cluster)
    files = {**(beside or {}), **settings_files(inner, kind)}
    files[LAUNCH_FILE] = node_script(inner, target, cluster, rank=RANKS[kind], what=what)
    if kind == slurm.NAME:
        return {**files, slurm.MAIN: slurm.script(cluster, target, what=what)}
    if kind == skypilot.NAME:
        how = f"sky launch --down {skypilot.MAIN}, or sky jobs launch {skypilot.MAIN}, which survives preemption"
        return {**files, skypilot.MAIN: as_yaml(skypilot.task(cluster, target), what, how)}
    how = f"kubectl apply -f {kubeflow.CONFIG_MAP} -f {kubeflow.MAIN}"
    return {
        **files,
        kubeflow.CONFIG_MAP: as_yaml(kubeflow.config_map(cluster, files), what, how),
        kubeflow.MAIN: as_yaml(kubeflow.train_job(cluster, target), what, how),
    }


def native(target: Target, data: Sequence[str], *, options: Sequence[str] = ()) -> Emitted:
    """ftplan's own launcher for the plan in `PLAN_FILE`: ``ftplan run`` on every node, which goes on where it was."""
    if not data:
        raise InputError("no data", hint="--data FILE.jsonl", field="data")
    named = [word for path in data for word in ("--data", path)]
    kept = ("--run-dir", target.output_dir, "--resume-or-start")
    return Emitted({}, "", ("ftplan", "run", PLAN_FILE, *named, *kept, *options))


def _require_words(words: Sequence[str]) -> None:
    if any("\0" in word for word in words):
        raise InputError("a word of the command holds a null character", field="command")
