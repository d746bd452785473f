"""Options of several machines, and what they add to a scheduler's environment."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ftplan.errors import InputError
from ftplan.launcher import network
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.workflows import nodes
from ftplan.workflows.nodes import NodeOptions

SKYPILOT = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "127.0.0.1 127.0.0.2"}
HERE = NodeOptions(nodes="2", node_rank=1, endpoint="127.0.0.1:4000")


UNKNOWN = socket.gaierror(-2, "Name or service not known")


def nowhere(host: str, port: int) -> str:
    raise UNKNOWN


def meeting(
    asked: NodeOptions, environ: dict[str, str] | None = None, run_dir: str | None = "runs/one"
) -> Rendezvous | None:
    return nodes.meeting(asked, environ or {}, run_dir=Path(run_dir) if run_dir else None)


def found(asked: NodeOptions, environ: dict[str, str] | None = None) -> Rendezvous:
    rendezvous = meeting(asked, environ)
    assert rendezvous is not None
    return rendezvous


def test_one_machine_has_none() -> None:
    assert meeting(NodeOptions()) is None
    assert meeting(NodeOptions(nodes="1"), SKYPILOT) is None
    assert meeting(NodeOptions(nodes="1"), {}) is None


def test_options_alone() -> None:
    rendezvous = found(HERE)
    assert (rendezvous.nodes, rendezvous.node_rank, rendezvous.endpoint) == (2, 1, "127.0.0.1:4000")
    assert (rendezvous.id, rendezvous.origin, rendezvous.is_elastic) == ("one", "--nodes", False)
    assert rendezvous.address == "127.0.0.1"
    # Loopback is no way to another machine.
    assert rendezvous.environment() == {}


def test_the_scheduler_alone_and_options_before_it() -> None:
    told = found(NodeOptions(), SKYPILOT)
    assert (told.node_rank, told.endpoint, told.origin) == (1, "127.0.0.1:29500", "SkyPilot")
    mixed = found(NodeOptions(endpoint="localhost:5000", id="mine", node_rank=0), SKYPILOT)
    assert (mixed.node_rank, mixed.endpoint, mixed.id, mixed.origin) == (0, "localhost:5000", "mine", "SkyPilot")
    assert mixed.address == "localhost"


def test_a_range_is_elastic() -> None:
    rendezvous = found(NodeOptions(nodes="1:2", node_rank=0, endpoint="[::1]:4000", join_seconds=7))
    assert (rendezvous.min_nodes, rendezvous.nodes, rendezvous.host) == (1, 2, "::1")
    assert rendezvous.join_seconds == 7


@pytest.mark.parametrize(
    ("asked", "message", "field"),
    [
        (NodeOptions(node_rank=0), "how many nodes", "nodes"),
        (NodeOptions(nodes="two", node_rank=0, endpoint="h:1"), "'two' is no number", "nodes"),
        (NodeOptions(nodes="2", endpoint="127.0.0.1:1"), "which node this is", "node_rank"),
        (NodeOptions(nodes="2", node_rank=0), "where the nodes meet", "rdzv_endpoint"),
        (NodeOptions(nodes="2", node_rank=0, endpoint="a b"), "'a b' is no endpoint", "rdzv_endpoint"),
        (NodeOptions(nodes="2", node_rank=2, endpoint="127.0.0.1:1"), "none of 2 nodes", ""),
        (NodeOptions(nodes="3:2", node_rank=0, endpoint="127.0.0.1:1"), "more than the most", ""),
        (NodeOptions(nodes="2", node_rank=0, endpoint="127.0.0.1:99999"), "less than 65536", "port"),
    ],
)
def test_what_is_missing_or_wrong_is_told(asked: NodeOptions, message: str, field: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        meeting(asked)
    if field:
        assert caught.value.field == field


def test_nodes_need_a_name_in_common() -> None:
    with pytest.raises(InputError, match="no name in common"):
        meeting(HERE, run_dir=None)


def test_a_node_waits_for_the_first_one_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def appears_later(host: str, port: int) -> str:
        asked.append(host)
        if len(asked) < 3:
            raise UNKNOWN
        return "127.0.0.9"

    monkeypatch.setattr(network, "address_towards", appears_later)
    monkeypatch.setattr(nodes, "RETRY_SECONDS", 0.05)
    assert found(HERE).address == "127.0.0.9"


def test_a_node_that_finds_no_first_one_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "address_towards", nowhere)
    monkeypatch.setattr(nodes, "RETRY_SECONDS", 0.3)
    with pytest.raises(InputError, match=r"node 0 is not found at 127\.0\.0\.1: Name or service"):
        meeting(NodeOptions(nodes="2", node_rank=1, endpoint="127.0.0.1:4000", join_seconds=1))


def test_a_dry_run_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "address_towards", nowhere)
    rendezvous = nodes.meeting(HERE, {}, run_dir=Path("one"), waits=False)
    assert rendezvous is not None
    assert rendezvous.address == ""


def test_the_interface_with_an_address() -> None:
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("203.0.113.1") == ""
    assert network.address_towards("127.0.0.1", 9) == "127.0.0.1"
