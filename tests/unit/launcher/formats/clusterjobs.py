"""Trainings to be wrapped for schedulers, and how their scripts are looked at."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ftplan.launcher.formats import llamafactory
from ftplan.launcher.formats.cluster import Cluster
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.launcher.formats.wrapping import native, wrap
from ftplan.spec import RunConfig
from ftplan.units import GIB

KINDS = ("slurm", "skypilot", "kubeflow")
MAIN = {"slurm": "job.sbatch", "skypilot": "task.yaml", "kubeflow": "trainjob.yaml"}
ASKED = Cluster(gpu_name="H100", host_bytes=200 * GIB)


def factory(target: Target, **changes: Any) -> Emitted:
    fields = {"model": "Qwen/Qwen2.5-7B", "stack": "llamafactory", "sharding": "zero3"} | changes
    return llamafactory.emit(RunConfig(**fields), target)


def started(*words: str) -> Emitted:
    """A training that is only a command."""
    return Emitted({}, "", words)


def last_line(command: Emitted, target: Target, cluster: Cluster = ASKED) -> str:
    """The line that starts the processes of one node."""
    return wrap("slurm", command, target, cluster)["launch.sh"].splitlines()[-1]


def run_bash(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, timeout=60, check=False, env=variables
    )


__all__ = ["ASKED", "KINDS", "MAIN", "factory", "last_line", "native", "run_bash", "started", "wrap"]
