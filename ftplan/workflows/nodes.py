"""The machines of one run: from options, or from what a scheduler tells, where they meet."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ftplan.errors import InputError
from ftplan.launcher import network
from ftplan.launcher.rendezvous import DEFAULT_PORT, JOIN_SECONDS, Rendezvous
from ftplan.launcher.schedulers import Told, plain_name, told_by_scheduler
from ftplan.workflows.inputs import input_error

RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What the user says of the nodes; None: nothing. ``nodes`` is a number, or MIN:MAX."""

    nodes: str | None = None
    node_rank: int | None = None
    endpoint: str | None = None
    id: str | None = None
    join_seconds: int | None = None
    interface: str | None = None


def meeting(
    asked: NodeOptions, environ: Mapping[str, str], *, run_dir: Path | None, run_id: str = "", waits: bool = True
) -> Rendezvous | None:
    """Where the nodes meet; None for a run on one machine. Each option goes before what the scheduler says.

    ``run_id`` names a run that goes on. Without ``waits`` a first node that cannot be found yet is no error, and this
    node's own address is left to torchrun. Raises InputError for what is missing or contradicts itself.
    """
    told = _merged(asked, told_by_scheduler(environ))
    if told is None:
        return None
    least, most = _range(told.nodes)
    if most == 1:
        return None
    if told.node_rank is None:
        raise InputError("nothing says which node this is", hint="--node-rank R, 0 for the first", field="node_rank")
    if not told.host:
        hint = "--rdzv-endpoint HOST:PORT, the same on all: HOST is node 0"
        raise InputError("nothing says where the nodes meet", hint=hint, field="rdzv_endpoint")
    name = told.id or run_id or (plain_name(run_dir.absolute().name) if run_dir else "")
    if not name:
        hint = "--run-dir DIR, or --rdzv-id NAME, the same on all"
        raise InputError("the nodes have no name in common for their run", hint=hint, field="rdzv_id")
    fields = {
        "nodes": most,
        "min_nodes": least,
        "node_rank": told.node_rank,
        "host": told.host,
        "port": told.port or DEFAULT_PORT,
        "id": name,
        "join_seconds": asked.join_seconds or JOIN_SECONDS,
        "origin": told.origin,
    }
    try:
        found = Rendezvous.model_validate(fields)
    except ValidationError as error:
        raise input_error(error) from error
    return _placed(found, asked.interface, waits=waits)


def _merged(asked: NodeOptions, told: Told | None) -> Told | None:
    if asked.nodes is None and told is None:
        if any(value is not None for value in (asked.node_rank, asked.endpoint, asked.id)):
            hint = "--nodes N, or leave the options of a rendezvous out"
            raise InputError("nothing says how many nodes there are", hint=hint, field="nodes")
        return None
    if asked.nodes == "1":
        return None
    host, port = _endpoint(asked.endpoint) if asked.endpoint else ("", None)
    base = told or Told()
    return replace(
        base,
        origin="--nodes" if asked.nodes else base.origin,
        nodes=asked.nodes or base.nodes,
        node_rank=base.node_rank if asked.node_rank is None else asked.node_rank,
        host=host or base.host,
        port=port if host else base.port,
        id=asked.id or base.id,
    )


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?::([1-9][0-9]{0,4}))?", text)
    if match is None:
        raise InputError(
            f"{text[:40]!r} is no number of nodes", hint="2, or 1:2 for at least and at most", field="nodes"
        )
    return int(match[1]), int(match[2] or match[1])


def _endpoint(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    if match is None:
        raise InputError(f"{text[:60]!r} is no endpoint", hint="HOST:PORT, as in node0:29500", field="rdzv_endpoint")
    return match[1].strip("[]"), int(match[2]) if match[2] else None


def _placed(found: Rendezvous, interface: str | None, *, waits: bool) -> Rendezvous:
    """``found`` with this node's own address, and the interface that has it."""
    own = _own_address(found, waits=waits)
    placed: dict[str, object] = {"names_interface": interface is not None}
    if own is not None:
        # The others reach node 0 under the endpoint's name; where that leads on node 0 itself may be loopback.
        placed["address"] = found.host if found.node_rank == 0 else own
    is_loopback = own is None or own.startswith("127.")
    placed["interface"] = interface or ("" if own is None or is_loopback else network.interface_of(own))
    return found.model_copy(update=placed)


def _own_address(found: Rendezvous, *, waits: bool) -> str | None:
    """The address that node 0 is reached from; its name may appear only when its container starts."""
    deadline = time.monotonic() + (found.join_seconds if waits else 0)
    while True:
        try:
            return network.address_towards(found.host, found.port)
        except OSError as error:
            if not waits:
                return None
            if time.monotonic() >= deadline:
                message = f"node 0 is not found at {found.host}: {error.strerror or error}"
                raise InputError(message, hint="HOST of --rdzv-endpoint is node 0", field="rdzv_endpoint") from error
        time.sleep(RETRY_SECONDS)
