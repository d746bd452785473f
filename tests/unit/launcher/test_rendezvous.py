"""Where nodes meet: torchrun's options, and what schedulers say in their environment."""

from __future__ import annotations

import pytest
from jobs import make_config, make_job
from pydantic import ValidationError

from ftplan.errors import InputError
from ftplan.launcher import artifacts
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.launcher.schedulers import Told, first_host, told_by_scheduler
from ftplan.launcher.timeouts import LEAST_SECONDS, collective_seconds

SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}
SKYPILOT = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.1.0.4\n10.1.0.5",
    "SKYPILOT_TASK_ID": "sky-2026-01-31-12-00-00-000001_ftplan_1",
}
TORCHRUN = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
    "PET_NPROC_PER_NODE": "8",
}


def meeting(**changes: object) -> Rendezvous:
    given: dict[str, object] = {"nodes": 2, "min_nodes": 2, "node_rank": 0, "host": "node0", "port": 29500, "id": "run"}
    return Rendezvous.model_validate(given | changes)


def test_torchrun_is_told_who_hosts_the_store() -> None:
    assert meeting(address="node0").torchrun_options() == [
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=node0:29500",
        "--rdzv-id=run",
        "--rdzv-conf=is_host=1,join_timeout=900,read_timeout=900",
        "--max-restarts=0",
        "--local-addr=node0",
    ]
    follower = meeting(node_rank=1, join_seconds=60).torchrun_options()
    assert "--rdzv-conf=is_host=0,join_timeout=60,read_timeout=60" in follower
    assert not any("local-addr" in option for option in follower)


def test_an_elastic_run_starts_again_with_fewer_nodes() -> None:
    options = meeting(nodes=4, min_nodes=2).torchrun_options()
    assert "--nnodes=2:4" in options
    assert "--max-restarts=3" in options


def test_an_address_of_ipv6_is_put_in_brackets() -> None:
    assert meeting(host="fd00::1").endpoint == "[fd00::1]:29500"


@pytest.mark.parametrize("wrong", [{"node_rank": 2}, {"min_nodes": 3}, {"port": 0}, {"id": "a b"}, {"host": ""}])
def test_what_contradicts_itself_is_no_rendezvous(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        meeting(**wrong)


def test_nccl_chooses_its_own_way_unless_one_is_named() -> None:
    assert meeting().environment() == {}
    assert meeting(interface="eth0").environment() == {"GLOO_SOCKET_IFNAME": "eth0"}
    named = meeting(interface="ib0", names_interface=True).environment()
    assert named == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0"}


def test_a_job_on_two_nodes_starts_its_part_of_the_ranks() -> None:
    job = make_job(make_config(sharding="ddp", accumulation=1), world_size=4, rendezvous=meeting(node_rank=1))
    command = artifacts.argv(job, "job.json")
    assert "--standalone" not in command
    assert "--nnodes=2" in command
    assert command[command.index("--nproc_per_node") + 1] == "2"
    artifacts.check_rendezvous(job)
    assert job.folder.home == job.folder.root / "nodes" / "1"


def test_nodes_that_are_not_the_plans_are_told() -> None:
    with pytest.raises(InputError, match="nothing says where they meet") as caught:
        artifacts.check_rendezvous(make_job(make_config(sharding="ddp", accumulation=1), world_size=4))
    assert "--node-rank" in caught.value.hint
    with pytest.raises(InputError, match=r"plan is for 1 machine\(s\), and Slurm says 2") as caught:
        artifacts.check_rendezvous(make_job(rendezvous=meeting(origin="Slurm")))
    assert "--nodes 1" in caught.value.hint
    sharded = make_config(sharding="zero3", accumulation=1)
    with pytest.raises(InputError, match="zero3 cannot go on with fewer nodes"):
        artifacts.check_rendezvous(make_job(sharded, world_size=4, rendezvous=meeting(min_nodes=1)))


def test_an_elastic_job_keeps_its_global_batch() -> None:
    job = make_job(make_config(sharding="ddp", accumulation=1), world_size=4)
    fewer = job.spread_over(2)
    assert (fewer.config.accumulation, fewer.world_size, fewer.global_batch) == (2, 2, 16)
    with pytest.raises(InputError, match="16 is no multiple of 3 processes"):
        job.spread_over(3)


def test_slurm_tells_its_nodes() -> None:
    told = Told("Slurm", "2", 1, "gpu007", 29500 + 345, "slurm-12345")
    assert told_by_scheduler(SLURM) == told
    exported = told_by_scheduler(SLURM | {"MASTER_ADDR": "gpu007-ib", "MASTER_PORT": "30001"})
    assert exported is not None
    assert (exported.host, exported.port) == ("gpu007-ib", 30001)


def test_a_step_of_slurms_job_may_have_fewer_nodes() -> None:
    assert told_by_scheduler(SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu008"}) is None


def test_skypilot_tells_its_nodes() -> None:
    told = Told("SkyPilot", "2", 1, "10.1.0.4", 29500, "sky-2026-01-31-12-00-00-000001_ftplan_1")
    assert told_by_scheduler(SKYPILOT) == told


def test_kubeflow_tells_its_nodes_as_torchrun_reads_them() -> None:
    told = Told("torchrun's environment (PET_)", "2", 1, "job-node-0-0.job", 29400, "")
    assert told_by_scheduler(TORCHRUN) == told
    # SkyPilot runs on Kubernetes, and both on Slurm's machines: the inner one knows this job.
    assert told_by_scheduler(SLURM | SKYPILOT | TORCHRUN) == told


@pytest.mark.parametrize(
    "environ", [{}, SLURM | {"SLURM_NNODES": "1"}, TORCHRUN | {"PET_NNODES": "1"}, {"SLURM_JOB_ID": "1"}]
)
def test_one_node_needs_no_rendezvous(environ: dict[str, str]) -> None:
    assert told_by_scheduler(environ) is None


def test_a_variable_that_is_no_number_is_told() -> None:
    with pytest.raises(InputError, match="SLURM_NODEID is 'x'"):
        told_by_scheduler(SLURM | {"SLURM_NODEID": "x"})


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("gpu7", "gpu7"),
        ("gpu[003-005,9],cpu1", "gpu003"),
        ("cpu1,gpu[3-4]", "cpu1"),
        ("rack[2-3]gpu[1,4]", "rack2gpu1"),
        ("gpu[12]", "gpu12"),
    ],
)
def test_the_first_host_of_a_list(nodelist: str, expected: str) -> None:
    assert first_host(nodelist) == expected


def test_ranks_wait_as_long_as_a_slow_disk_takes() -> None:
    assert collective_seconds(8 * 10**9, 10**7) == LEAST_SECONDS
    # 70 B in full: 280 GB of weights and 840 GB of fp32 values and moments at 100 MB/s, and the start.
    assert collective_seconds(70 * 10**9, 70 * 10**9) == 600 + 11_200
