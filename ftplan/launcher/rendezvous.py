"""Where the machines of one run meet: what every node is told, and torchrun's options for it.

torchrun's elastic rendezvous (backend c10d): node 0 hosts the store, the others connect to it. torch guesses which node
hosts it from host names, and takes a node's own address from its host name, which Debian maps to 127.0.1.1: both are
told here instead. Ranks follow the order of the addresses, not the nodes' numbers, so that rank 0 may be on any node.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from ftplan.spec import PositiveInt, Spec

JOIN_SECONDS: Final = 900
"""How long nodes wait for each other: containers are pulled and clouds start machines at different speeds."""
DEFAULT_PORT: Final = 29500
MAX_RESTARTS: Final = 3
"""How often an elastic run goes on after a failure before it is given up (torchrun's own default is none)."""


class Rendezvous(Spec):
    """The nodes of one run, as one of them knows it.

    ``min_nodes`` is less than ``nodes`` for an elastic run, which goes on with fewer. ``address`` is what the others
    reach this node under; empty: torchrun finds out. ``interface`` is the network interface that has it. ``origin``
    says who told all this.

    gloo takes ``interface``, because its own choice is where the host name leads; NCCL finds the
    fastest way alone, and is given one only if the user ``names_interface``.
    """

    nodes: PositiveInt
    min_nodes: PositiveInt
    node_rank: Annotated[int, Field(ge=0)]
    host: str = Field(min_length=1)
    port: Annotated[int, Field(ge=1, lt=2**16)] = DEFAULT_PORT
    id: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    join_seconds: PositiveInt = JOIN_SECONDS
    address: str = ""
    interface: str = ""
    names_interface: bool = False
    origin: str = "options"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_nodes > self.nodes:
            raise ValueError(f"at least {self.min_nodes} nodes are more than the most, {self.nodes}")
        if self.node_rank >= self.nodes:
            raise ValueError(f"node {self.node_rank} is none of {self.nodes} nodes, which count from 0")
        return self

    @property
    def is_elastic(self) -> bool:
        """Whether the run goes on with fewer nodes."""
        return self.min_nodes < self.nodes

    @property
    def endpoint(self) -> str:
        """``host:port`` of the store."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def torchrun_options(self) -> list[str]:
        """How torchrun is told."""
        conf = {
            "is_host": int(self.node_rank == 0),
            "join_timeout": self.join_seconds,
            # A node that is there before node 0 waits so long for the store.
            "read_timeout": self.join_seconds,
        }
        options = [
            f"--nnodes={self.min_nodes}:{self.nodes}" if self.is_elastic else f"--nnodes={self.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={self.id}",
            "--rdzv-conf=" + ",".join(f"{name}={value}" for name, value in conf.items()),
            f"--max-restarts={MAX_RESTARTS if self.is_elastic else 0}",
        ]
        return [*options, f"--local-addr={self.address}"] if self.address else options

    def environment(self) -> dict[str, str]:
        """Which way the ranks' connections take."""
        if not self.interface:
            return {}
        nccl = {"NCCL_SOCKET_IFNAME": self.interface} if self.names_interface else {}
        return {"GLOO_SOCKET_IFNAME": self.interface, **nccl}
