"""The probe's processes, played by small scripts: what they write, and how they hang or die."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from ftplan.launcher import probing
from ftplan.launcher.probe.parts import parts_for
from ftplan.launcher.probing import Part, Probe

PLAYER = """\
import json, os, sys, time
out, parts = sys.argv[sys.argv.index("--out") + 1], sys.argv[sys.argv.index("--limit") + 2:]
def write(line):
    with open(out, "a") as file:
        file.write(json.dumps(line) + "\\n")
write({"torch": "2.11.0"})
for part in parts:
    if part == HANGS:
        time.sleep(60)
    if part == DIES:
        print("Segmentation fault", file=sys.stderr)
        os._exit(7)
    if part == FAILS:
        write({"part": part, "failed": "no such thing"})
    else:
        write({"part": part, "figures": {part: 1.0}})
"""


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Probe with a script in the place of the probe; returns what it found, and the parts in their order."""

    def probed(hangs: str = "", dies: str = "", fails: str = "", seconds: float = 30.0):
        script = tmp_path / "player.py"
        script.write_text(f"HANGS, DIES, FAILS = {hangs!r}, {dies!r}, {fails!r}\n{PLAYER}")
        argv = Probe.argv
        monkeypatch.setattr(Probe, "argv", lambda self, *given: [sys.executable, str(script), *argv(self, *given)[3:]])
        monkeypatch.setattr(probing, "parts_for", lambda kind, grouped: {"a": 0.5, "b": 0.5, "c": 0.5})
        parts: list[Part] = []
        found = probing.run_probe(Probe("cpu"), time.monotonic() + seconds, parts.append)
        return found, parts

    return probed


def test_every_part_is_measured_in_one_process(play):
    found, parts = play()
    assert found.figures == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert (found.torch, found.failures) == ("2.11.0", {})
    assert [part.name for part in parts] == ["a", "b", "c"]


def test_a_part_that_fails_tells_why(play):
    found, parts = play(fails="b")
    assert found.failures == {"b": "no such thing"}
    assert list(found.figures) == ["a", "c"]
    assert parts[1] == Part("b", failed="no such thing")


def test_a_part_that_hangs_is_left_out(play):
    started = time.monotonic()
    found, _ = play(hangs="b")
    assert time.monotonic() - started < 10
    assert found.failures == {"b": "took longer than 0 s"}
    assert list(found.figures) == ["a", "c"]


def test_a_process_that_dies_costs_one_part(play):
    found, _ = play(dies="a")
    assert found.failures == {"a": "Segmentation fault"}
    assert list(found.figures) == ["b", "c"]


def test_when_time_is_up_what_is_left_is_not_measured(play):
    found, parts = play(seconds=-1)
    assert found.figures == {}
    assert found.failures == dict.fromkeys("abc", probing.NO_TIME)
    assert [part.name for part in parts] == ["a", "b", "c"]


def test_commands(tmp_path):
    alone = Probe("cpu").argv(tmp_path / "out", 20.4, ["context"])
    assert alone[1:3] == ["-m", "ftplan.launcher.probe"]
    assert alone[3:] == ["--device", "cpu", "--out", str(tmp_path / "out"), "--limit", "20", "context"]
    group = Probe("cuda", 4).argv(tmp_path / "out", 20, [])
    assert group[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]


def test_a_cpu_has_no_link_to_its_host_and_no_nccl():
    assert "host link" in parts_for("cuda")
    assert "host link" not in parts_for("cpu")
    assert list(parts_for("cuda", grouped=True)) == ["communicators", "device link"]
    assert list(parts_for("cpu", grouped=True)) == ["device link"]


def test_memory_that_others_give_back_is_no_context():
    memory = pytest.importorskip("ftplan.launcher.probe.memory")
    assert memory.taken_bytes(100, 150) == 50
    with pytest.raises(RuntimeError, match="gave memory"):
        memory.taken_bytes(100, 99)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_part_has_its_measure(grouped):
    pytest.importorskip("torch")
    from ftplan.launcher.probe import group, single

    assert set((group if grouped else single).MEASURES) == set(parts_for("cuda", grouped=grouped))
