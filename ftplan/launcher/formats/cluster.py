"""What a scheduler is asked for beside the training, and what its files say of the training inside."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from ftplan.errors import CannotExpressError, InputError
from ftplan.launcher.formats.partial import ANY_SHAPE, Shape
from ftplan.units import GIB

HOST_PERCENT: Final = 110
"""A job over its share of RAM is killed, and page cache counts: a tenth more than the estimate says."""
DEFAULT_PORT: Final = 29500
FOLDER: Final = "/workspace"
"""Where a container has the files and the relative paths of a job."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+,=-]*")
_PLAIN_OPTIONS: Final = ("account", "partition", "qos", "interface", "namespace")


@dataclass(frozen=True)
class Cluster:
    """What a job asks its scheduler for. A field that a scheduler has no word for is an error there, unless unset.

    Attributes:
        name: of the job.
        hours: after which it is ended; None: the scheduler's own limit.
        host_bytes: RAM that the ranks of one node need, as estimated; None: the scheduler's default.
        gpu_name: a card of the catalogue, for schedulers that choose machines by it.
        cpus_per_gpu: cores for each rank and its loader.
        port: of the rendezvous; Slurm jobs share nodes and add their number.
        rendezvous_seconds: how long the nodes wait for each other to start.
        collective_seconds: how long a rank waits for the others in a collective: the first tokenizes the data alone.
        interface: of the network between nodes, where NCCL finds the wrong one; empty: its own choice.
        account, partition, qos: of Slurm.
        requeue: Slurm puts a preempted job, and one whose time is up, back into its queue.
        image: of the container; empty: the runtime's.
        namespace: of Kubernetes; empty: the current one.
        packages: pip requirements that are installed first.
        storage: what keeps the output folder: a bucket's URL (SkyPilot), a volume claim's name (Kubeflow).
        spot: take machines that can be preempted.

    """

    name: str = "ftplan"
    hours: float | None = None
    host_bytes: int | None = None
    gpu_name: str = ""
    cpus_per_gpu: int = 8
    port: int = DEFAULT_PORT
    rendezvous_seconds: int = 900
    collective_seconds: int = 7200
    interface: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    requeue: bool = True
    image: str = ""
    namespace: str = ""
    packages: tuple[str, ...] = ()
    storage: str = ""
    spot: bool = False

    @property
    def host_gib(self) -> int | None:
        """RAM of a node to ask for, in GiB."""
        return None if self.host_bytes is None else -(-self.host_bytes * HOST_PERCENT // (100 * GIB))

    @property
    def seconds(self) -> int | None:
        """The time limit."""
        return None if self.hours is None else max(60, math.ceil(self.hours * 3600))


@dataclass(frozen=True)
class Wrapped:
    """The training inside a scheduler's file.

    ``text`` is shell text, which begins in line ``line`` of the file; ``environment`` what the scheduler sets for it,
    as far as the file tells; ``device`` the card as the file calls it.
    """

    text: str
    shape: Shape = ANY_SHAPE
    environment: Mapping[str, str] = field(default_factory=dict)
    line: int = 1
    device: str = ""


def require_plain(cluster: Cluster) -> None:
    """Raise InputError for what would mean more to a scheduler than its value, or nothing."""
    for name in _PLAIN_OPTIONS:
        value = getattr(cluster, name)
        if value and not _PLAIN.fullmatch(value):
            raise InputError(f"{name} {value!r} is no name", hint="letters, digits, and . _ : @ / + , = -", field=name)
    for name in ("cpus_per_gpu", "rendezvous_seconds", "collective_seconds"):
        if getattr(cluster, name) < 1:
            raise InputError(f"{name} is {getattr(cluster, name)}, not at least 1", field=name)
    if not 1024 <= cluster.port < 2**16:
        raise InputError(f"port {cluster.port} is not between 1024 and 65535", field="port")
    if cluster.hours is not None and not 0 < cluster.hours < 10_000:
        raise InputError(f"hours is {cluster.hours}, not between 0 and 10000", field="hours")
    if cluster.host_bytes is not None and cluster.host_bytes < 1:
        raise InputError(f"host_bytes is {cluster.host_bytes}, not at least 1", field="host_bytes")


def require_name(name: str, pattern: re.Pattern[str], longest: int, valid: str) -> None:
    """Raise InputError for a job's name that the scheduler would refuse."""
    if len(name) > longest or not pattern.fullmatch(name):
        raise InputError(f"{name[:80]!r} is no name of a job there", hint=valid, field="name")


def refuse(title: str, cluster: Cluster, names: Collection[str], *, hint: str) -> None:
    """Raise CannotExpressError for fields among ``names`` that are set."""
    defaults = {each.name: each.default for each in fields(Cluster)}
    set_here = {name: getattr(cluster, name) for name in names if getattr(cluster, name) != defaults[name]}
    if set_here:
        raise CannotExpressError(title, set_here, hint=hint)
