"""What schedulers tell the nodes of a job in their environment.

Sources: the output environment of srun(1) and sbatch(1); SkyPilot's docs/source/running-jobs/environment-variables;
kubeflow/trainer pkg/runtime/framework/plugins/torch/torch.go; torch/distributed/argparse_util.py for ``PET_``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ftplan.errors import InputError
from ftplan.launcher.rendezvous import DEFAULT_PORT

PORTS: Final = 1000
"""Jobs of Slurm that share a node take ports by their number."""

Environ = Mapping[str, str]


@dataclass(frozen=True)
class Told:
    """What is known of a rendezvous; None or empty: not told. ``nodes`` is a number, or MIN:MAX."""

    origin: str = "options"
    nodes: str = ""
    node_rank: int | None = None
    host: str = ""
    port: int | None = None
    id: str = ""


def told_by_scheduler(environ: Environ) -> Told | None:
    """What the scheduler says of the job's nodes; None for a job on one node, or outside of any.

    torchrun's own variables, which Kubeflow sets, go before SkyPilot's, and these before Slurm's: SkyPilot runs on
    Slurm and on Kubernetes, never the other way round.
    """
    told = next((found for read in _READERS if (found := read(environ)) is not None), None)
    return told if told is not None and told.nodes not in ("", "1") else None


def first_host(nodelist: str) -> str:
    """The first host of Slurm's compressed list: ``gpu003`` of ``gpu[003-005,9],cpu1``."""
    first = re.split(r",(?![^\[]*\])", nodelist)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _torchrun(environ: Environ) -> Told | None:
    if "PET_NNODES" not in environ:
        return None
    return Told(
        origin="torchrun's environment (PET_)",
        nodes=environ["PET_NNODES"],
        node_rank=_number(environ, "PET_NODE_RANK"),
        host=environ.get("PET_MASTER_ADDR", ""),
        port=_number(environ, "PET_MASTER_PORT"),
        id=plain_name(environ.get("PET_RDZV_ID", "")),
    )


def _skypilot(environ: Environ) -> Told | None:
    if "SKYPILOT_NODE_RANK" not in environ:
        return None
    ips = environ.get("SKYPILOT_NODE_IPS", "").split()
    return Told(
        origin="SkyPilot",
        nodes=environ.get("SKYPILOT_NUM_NODES") or str(len(ips)),
        node_rank=_number(environ, "SKYPILOT_NODE_RANK"),
        host=environ.get("MASTER_ADDR") or (ips[0] if ips else ""),
        port=_number(environ, "MASTER_PORT") or DEFAULT_PORT,
        id=plain_name(environ.get("SKYPILOT_TASK_ID", "")),
    )


def _slurm(environ: Environ) -> Told | None:
    job = _number(environ, "SLURM_JOB_ID")
    if job is None or "SLURM_NODEID" not in environ:
        return None
    step = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    return Told(
        origin="Slurm",
        nodes=environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES", ""),
        node_rank=_number(environ, "SLURM_NODEID"),
        host=environ.get("MASTER_ADDR") or first_host(step),
        port=_number(environ, "MASTER_PORT") or DEFAULT_PORT + job % PORTS,
        id=f"slurm-{job}",
    )


_READERS: Final[tuple[Callable[[Environ], Told | None], ...]] = (_torchrun, _skypilot, _slurm)


def _number(environ: Environ, name: str) -> int | None:
    value = environ.get(name)
    if not value:
        return None
    if not (value.isascii() and value.isdecimal()):
        raise InputError(f"{name} is {value[:40]!r}, not a number", hint="the scheduler sets it: leave it as it is")
    return int(value)


def plain_name(name: str) -> str:
    """``name`` in the letters that a rendezvous and a folder may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)
