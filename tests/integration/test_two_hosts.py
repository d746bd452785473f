"""One run on two hosts: network namespaces of this machine, joined by a cable, with `ftplan run` in each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from run_facts import may_administer

from ftplan.launcher import checkpoints, monitor, records
from ftplan.launcher.events import Started, Stepped
from ftplan.launcher.records import RunDir

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

STEPS: Final = 16
KILLED_AT: Final = 4
"""After the first checkpoint; what follows is a few steps further when the kill arrives."""
RUN: Final = ("run", "--demo", "--max-steps", str(STEPS), "--save-steps", "3")
PORT: Final = 29433
NOTICED_SECONDS: Final = 40


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with the addresses 10.77.0.1 and 10.77.0.2."""
    if not may_administer():
        pytest.skip("network namespaces need CAP_SYS_ADMIN; what nodes settle is tested without, in threads")
    if shutil.which("ip") is None:
        pytest.skip("no ip(8) here: install iproute2, which pip has not")
    names = (f"ftplan-{os.getpid()}-0", f"ftplan-{os.getpid()}-1")
    cables = (f"ft{os.getpid() % 10**7}a", f"ft{os.getpid() % 10**7}b")
    try:
        ip("netns", "add", names[0])
        ip("netns", "add", names[1])
        ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", cable, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def start(host: str, node: int, *words: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """`ftplan` on a host, as the node with this number."""
    where = ("--nodes", "2", "--node-rank", str(node), "--rdzv-endpoint", f"10.77.0.1:{PORT}", "--rdzv-timeout", "120")
    # `ip netns exec` becomes the command: the process is ftplan itself.
    process = subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, "-m", "ftplan", *words, *where],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Each host takes all cores for its own: with threads for all of them, both would wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, {cores[node % len(cores)]})
    return process


def steps_of(run: RunDir) -> list[int]:
    return [event.step for event in monitor.read_all(run.metrics) if isinstance(event, Stepped)]


def losses(run: RunDir) -> dict[int, float]:
    """The loss of each step; of a step trained twice, the later one."""
    return {event.step: event.loss for event in monitor.read_all(run.metrics) if isinstance(event, Stepped)}


def wait_until(condition: Callable[[], bool], seconds: float, *alive: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        for process in alive:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def die(host: subprocess.Popen[str], run: RunDir) -> None:
    """What the others see when a host is lost: its processes are gone at once, without a word."""
    started = next(event for event in monitor.read_all(run.metrics) if isinstance(event, Started))
    os.kill(started.pids[run.node], signal.SIGKILL)
    host.kill()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the same run with both processes on one host."""
    folder = tmp_path_factory.mktemp("runs") / "one-host"
    command = [sys.executable, "-m", "ftplan", *RUN, "--gpus", "2xcpu", "--run-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    return losses(RunDir(folder))


def test_two_hosts_train_one_run_that_survives_the_loss_of_one(
    hosts: tuple[str, str], reference: dict[int, float], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first, second = RunDir(folder), RunDir(folder, node=1)
    words = (*RUN, "--gpus", "2x1xcpu", "--run-dir", str(folder))
    with start(hosts[0], 0, *words) as stays, start(hosts[1], 1, *words) as dies:
        wait_until(lambda: KILLED_AT in steps_of(first), 120, stays, dies)
        die(dies, second)
        assert stays.wait(NOTICED_SECONDS) == 3
        told = stays.stderr.read() if stays.stderr else ""
    assert "node 0 of 2, rendezvous run at 10.77.0.1" in told
    saved = checkpoints.latest_complete(first.checkpoints)
    assert saved is not None
    assert saved.step < STEPS
    assert f"step {saved.step} is saved" in told
    state = records.read_state(first)
    assert state is not None
    assert state.status == "failed"

    # Each host keeps its own log and state; both saw the same steps.
    assert second.log.stat().st_size > 0
    assert steps_of(second)[:KILLED_AT] == steps_of(first)[:KILLED_AT]
    started = next(event for event in monitor.read_all(first.metrics) if isinstance(event, Started))
    assert (started.world_size, started.global_batch) == (2, 16)

    again = ("run", "--resume", "--run-dir", str(folder))
    with start(hosts[0], 0, *again) as one, start(hosts[1], 1, *again) as other:
        assert (one.wait(120), other.wait(120)) == (0, 0)
    record = records.read_record(first)
    assert record is not None
    assert (record.status, record.steps, record.resumed_from_step) == ("finished", STEPS, saved.step)
    newest = checkpoints.latest_complete(first.checkpoints)
    assert newest is not None
    assert (newest.step, newest.world_size) == (STEPS, 2)
    assert (folder / "final" / "adapter_model.safetensors").exists()
    assert losses(first) == pytest.approx(reference, abs=1e-4)
    assert losses(second) == losses(first)


def test_a_host_knows_its_own_address_and_interface(hosts: tuple[str, str], tmp_path: Path) -> None:
    """Both hosts have one name here, which leads to neither."""
    words = (*RUN, "--gpus", "2x1xcpu", "--dry-run", "--json", "--run-dir", str(tmp_path / "run"))
    with start(hosts[1], 1, *words, stdout=subprocess.PIPE) as process:
        prepared = json.loads(process.communicate(timeout=60)[0])
    assert "--local-addr=10.77.0.2" in prepared["argv"]
    assert "is_host=0" in " ".join(prepared["argv"])
    assert prepared["env"]["GLOO_SOCKET_IFNAME"].endswith("b")
    assert not (tmp_path / "run").exists()
