"""Preflight of jobs on an injected machine; `tests/unit/launcher/preflight` holds each check."""

from dataclasses import replace

import pytest

from ftplan.errors import DoesNotFitError, InputError
from ftplan.launcher.preflight.facts import Disk, Host, Installed
from ftplan.launcher.preflight.findings import Finding, Status
from ftplan.profiles.cards_now import CardNow, CardsNow
from ftplan.units import GIB, MIB
from ftplan.workflows import planning, preflight, running

VERSIONS = dict.fromkeys(("torch", "transformers", "peft", "trl", "accelerate", "datasets"), "99.0")


@pytest.fixture
def machine(monkeypatch):
    """Put a machine in the place of this one: two free cards of 24 GiB, 64 GiB of RAM, 1 TiB of disk."""

    def install(free_gib=24.0, ram_gib=64.0, disk_bytes=1024 * GIB, versions=VERSIONS):
        card = CardNow("a card", 24 * GIB, round(free_gib * GIB))
        monkeypatch.setattr(preflight, "cards_now", lambda: CardsNow("999.0", 2, (card, card)))
        monkeypatch.setattr(preflight, "installed", lambda: Installed(versions, {"torch": "2.11"}, (), "13.0"))
        monkeypatch.setattr(preflight.machine, "host", lambda: Host(round(ram_gib * GIB), 16))
        monkeypatch.setattr(preflight, "check_weights", lambda source: ())
        monkeypatch.setattr(preflight.machine, "disk", lambda folder: Disk(str(folder), disk_bytes))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


@pytest.fixture(scope="module")
def plan():
    return planning.plan(planning.plan_request("2x24GB", model="Qwen-7B"))


def refused(plan, tmp_path, **changes):
    settings = running.demo_settings(running.RunSettings(run_dir=tmp_path / "run"))
    settings = running.RunSettings(settings.data, run_dir=tmp_path / "run", weights="Qwen/Qwen-7B")
    job = running.ready(plan, settings).job.model_copy(update=changes)
    findings = preflight.before_run(job, plan)
    preflight.refuse(findings)
    return [finding.check for finding in findings if finding.status is not Status.OK]


def test_a_free_machine_refuses_nothing(machine, plan, tmp_path):
    machine()
    assert refused(plan, tmp_path) == []


def test_memory_that_is_taken_now_refuses_the_run(machine, plan, tmp_path):
    machine(free_gib=plan.estimate.needed_bytes / GIB)
    assert refused(plan, tmp_path) == []
    machine(free_gib=plan.estimate.needed_bytes / GIB - 0.1)
    with pytest.raises(DoesNotFitError, match="GPU memory") as caught:
        refused(plan, tmp_path)
    assert "--force" in caught.value.hint


def test_a_host_without_the_ram_refuses_the_run(machine, plan, tmp_path):
    machine(ram_gib=plan.estimate.host.needed_bytes / GIB - 0.1)
    with pytest.raises(DoesNotFitError, match="host RAM"):
        refused(plan, tmp_path)


def test_a_disk_without_room_refuses_the_run_unless_fewer_checkpoints_are_kept(machine, plan, tmp_path):
    adapters = 4 * plan.estimate.trainable_params
    # Each checkpoint holds them and two moments, the result holds them once; and a tokenizer of 20 MB in each.
    machine(disk_bytes=round(3 * 3.2 * adapters + 1.2 * adapters) + 100 * MIB)
    assert refused(plan, tmp_path) == []
    with pytest.raises(DoesNotFitError, match="disk"):
        refused(plan, tmp_path, save_total_limit=3)


def test_a_package_that_is_missing_is_bad_input(machine, plan, tmp_path):
    machine(versions={name: version for name, version in VERSIONS.items() if name != "datasets"}, free_gib=1)
    with pytest.raises(InputError, match="GPU memory, packages"):
        refused(plan, tmp_path)


def test_warnings_refuse_nothing():
    preflight.refuse([Finding("open files", Status.WARNING, "few"), Finding("NCCL", Status.UNKNOWN, "not asked")])


def test_without_a_plan_memory_is_estimated_anew(machine, tmp_path):
    plan = running.demo_plan()
    job = running.ready(plan, running.demo_settings(running.RunSettings(run_dir=tmp_path / "run"))).job
    machine(ram_gib=0.1)
    told = {finding.check: finding for finding in preflight.before_run(job, None)}
    assert told["host RAM"].status is Status.ERROR
    assert told["host RAM"].figures["needed_bytes"] == plan.estimate.host.needed_bytes


def test_a_model_that_is_known_where_it_was_planned_alone_can_start(machine, plan, tmp_path):
    machine()
    config = plan.config.model_copy(update={"model": str(tmp_path / "elsewhere" / "config.json")})
    assert refused(replace(plan, config=config), tmp_path) == []


def test_weights_that_cannot_be_had_are_bad_input(machine, plan, tmp_path, monkeypatch):
    machine()
    lacking = Finding("weights", Status.ERROR, "not here")
    monkeypatch.setattr(preflight, "check_weights", lambda source: (lacking,) if source.kind == "hub" else ())
    with pytest.raises(InputError, match="weights"):
        refused(plan, tmp_path)


def test_the_tokenizer_s_files_count_where_they_are():
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    sizes = [(running.demo.model_path() / name).stat().st_size for name in names]
    assert preflight._tokenizer_bytes(running.demo.tokenizer()) == sum(sizes)
    assert preflight._tokenizer_bytes(None) is None
