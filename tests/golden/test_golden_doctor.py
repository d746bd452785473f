"""What ``ftplan doctor`` prints of injected machines; after a change: ``pytest tests/golden --refresh-golden``."""

from __future__ import annotations

import json

import pytest

from ftplan import cli
from ftplan.launcher.lengths import LengthReport
from ftplan.launcher.preflight.facts import Disk, Host, Installed, Torch, TorchDevice
from ftplan.profiles.cards_now import CardNow, CardProcess, CardsNow
from ftplan.render import console
from ftplan.results import to_json
from ftplan.units import GIB, MIB
from ftplan.workflows import examining, planning, preflight

VERSIONS = {
    "torch": "2.13.0+cu130", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "accelerate": "1.15.0",
    "datasets": "5.2.0",
}  # fmt: skip
LENGTHS = LengthReport(
    rows=1000, tokens=410_000, mean_tokens=410.0, longest=7000, cutoff=2048, truncated_rows=61, lost_tokens=90_000,
    empty_rows=3, buckets=((32, 12), (64, 80), (128, 160), (256, 240), (512, 280), (1024, 120), (2048, 47), (4096, 50),
    (8192, 11)),
)  # fmt: skip


def a_card(free_gib, *processes):
    return CardNow("NVIDIA GeForce RTX 4090", 24 * GIB, round(free_gib * GIB), processes)


def a_torch(cards):
    device = TorchDevice("NVIDIA GeForce RTX 4090", (8, 9), bf16=True)
    return Torch("2.13.0+cu130", "13.0", "", (device,) * cards, ("sm_86", "sm_90"), "2.27.7")


@pytest.fixture
def doctor(monkeypatch, tmp_path, capsys):
    """Run ``ftplan doctor`` on a machine that is made up: good, or with everything wrong that can be."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"NO_COLOR": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    console.out.cache_clear()
    console.err.cache_clear()

    def run(*arguments, good, code):
        if good:
            cards = CardsNow("580.65.06", 2, (a_card(23.4), a_card(23.4)))
            host, disk, versions = Host(60 * GIB, 16, 8 * GIB), Disk("/data", 500 * GIB), VERSIONS
        else:
            cards = CardsNow("550.54.14", 2, (a_card(23.4), a_card(3.2, CardProcess(4242, "python", 20 * GIB))))
            host = Host(12 * GIB, 1, 64 * MIB, open_files=1024)
            disk, versions = Disk("/data", 300 * MIB), {k: v for k, v in VERSIONS.items() if k != "trl"}
        packages = Installed(versions, {"peft": "0.21" if good else "0.22"}, (), "13.0")
        monkeypatch.setattr(preflight, "cards_now", lambda: cards)
        monkeypatch.setattr(preflight, "installed", lambda: packages)
        monkeypatch.setattr(preflight.machine, "host", lambda: host)
        monkeypatch.setattr(preflight.machine, "disk", lambda folder: disk)
        monkeypatch.setattr(examining.environment, "ask_torch", lambda modules: (a_torch(2 if good else 0), ""))
        monkeypatch.setattr(examining.data_lengths, "measured", lambda job: LENGTHS)
        if good:  # its weights are in the hub's cache
            monkeypatch.setattr(examining, "check_weights", lambda source: ())
        assert cli.run(["doctor", *arguments]) == code
        return "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines())

    return run


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan for two cards, as a file."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(to_json(planning.plan(planning.plan_request("2x24GB", model="Qwen-7B"))))
    return str(path)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": "The cat licked its paw."}) + "\n")
    return str(path)


@pytest.mark.parametrize(("name", "good", "code"), [("good", True, 0), ("bad", False, 1)])
def test_a_machine(golden, doctor, name, good, code):
    golden(f"doctor/machine-{name}.txt", doctor(good=good, code=code))


@pytest.mark.parametrize(("name", "good", "code"), [("good", True, 0), ("bad", False, 1)])
def test_a_plan_with_data(golden, doctor, plan, data, name, good, code):
    arguments = (plan, "--data", data, "--weights", "Qwen/Qwen-7B")
    golden(f"doctor/plan-{name}.txt", doctor(*arguments, good=good, code=code))


def test_a_plan_as_json(golden, doctor, plan, data):
    text = doctor(plan, "--data", data, "--weights", "Qwen/Qwen-7B", "--json", good=False, code=1)
    golden("doctor/plan-bad.json", json.dumps(json.loads(text), indent=2) + "\n")
