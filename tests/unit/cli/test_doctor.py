"""``ftplan doctor`` and the preflight of ``ftplan run`` as commands, on this machine's CPU or an injected one."""

import json

import pytest

from ftplan.launcher.preflight.facts import Disk, Host, Torch
from ftplan.units import GIB
from ftplan.workflows import examining, preflight, running


@pytest.fixture
def quick(monkeypatch):
    """A torch that answers at once, and a host and disk with room."""
    told = Torch("2.13.0+cpu", None, "Torch not compiled with CUDA enabled")
    monkeypatch.setattr(examining.environment, "ask_torch", lambda modules: (told, ""))
    monkeypatch.setattr(preflight.machine, "host", lambda: Host(60 * GIB, 16))
    monkeypatch.setattr(preflight.machine, "disk", lambda folder: Disk(str(folder), 100 * GIB))


@pytest.mark.usefixtures("quick")
def test_the_machine_alone(cli):
    pytest.importorskip("trl")
    answer = cli("doctor", "--json")
    assert answer.code == 0
    assert answer.document["status"] in ("ok", "warning")
    assert answer.document["lengths"] is None
    assert {"torch", "packages", "host RAM", "disk"} <= {each["check"] for each in answer.document["findings"]}


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\x00"])
def test_a_plan_that_is_none(cli, tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    answer = cli("doctor", "plan.json")
    assert answer.code == 2
    assert "not a plan of this version" in answer.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere.json",), "cannot read nowhere.json"),
        (("--data", "train.jsonl"), "data is checked against a plan"),
        (("plan.json", "--model", "Qwen-7B"), "takes no --model"),
        (("plan.json", "--demo"), "takes no --demo"),
        (("--model", "no-such-model", "--gpus", "1x24GB"), "no-such-model"),
    ],
)
def test_bad_input(cli, arguments, told):
    answer = cli("doctor", *arguments)
    assert answer.code == 2
    assert told in answer.err


@pytest.mark.usefixtures("quick")
def test_a_plan_that_is_written(cli):
    pytest.importorskip("trl")
    assert cli("plan", "--model", "gpt2", "--gpus", "1x24GB", "--method", "lora", "--out", "plan").code == 0
    answer = cli("doctor", "plan", "--json")
    assert answer.code == 1  # there is no card here
    errors = {each["check"] for each in answer.document["findings"] if each["status"] == "error"}
    assert "driver" in errors
    assert cli("doctor", "plan/plan.json", "--json").document == answer.document


class LaunchedError(Exception):
    """In place of a launch."""


@pytest.fixture
def launched(monkeypatch):
    """Start nothing: the jobs that would have been launched."""
    jobs = []

    def launch(job, plan, on_event, patience, *, replaces):
        jobs.append(job)
        raise LaunchedError

    monkeypatch.setattr(running, "launch", launch)
    return jobs


@pytest.mark.usefixtures("quick")
def test_a_run_that_will_not_fit_is_refused_unless_forced(cli, launched, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setattr(preflight.machine, "disk", lambda folder: Disk(str(folder), 1000))
    answer = cli("run", "--demo")
    assert answer.code == 1
    assert "error: disk: no room for 2 checkpoints" in answer.err
    assert "error: the run does not fit here now: disk" in answer.err
    assert "hint: --force" in answer.err
    assert launched == []
    with pytest.raises(LaunchedError):
        cli("run", "--demo", "--force")
    assert len(launched) == 1


@pytest.mark.usefixtures("quick")
def test_a_run_that_is_resumed_is_looked_at_too(cli, launched, monkeypatch, tmp_path):
    pytest.importorskip("trl")
    settings = running.demo_settings(running.RunSettings(run_dir=tmp_path / "run"))
    job = running.ready(running.demo_plan(), settings).job
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text(job.model_dump_json())
    resume = ("run", "--resume", "--run-dir", tmp_path / "run")
    with pytest.raises(LaunchedError):
        cli(*resume)
    monkeypatch.setattr(preflight.machine, "host", lambda: Host(1000, 16))
    answer = cli(*resume)
    assert answer.code == 1
    assert "host RAM: too little is available now" in answer.err
    with pytest.raises(LaunchedError):
        cli(*resume, "--force")
    assert [one.resume for one in launched] == [True, True]


@pytest.mark.usefixtures("quick")
def test_warnings_are_a_line_each(cli, launched, monkeypatch, capsys):
    pytest.importorskip("trl")
    monkeypatch.setattr(preflight.machine, "host", lambda: Host(60 * GIB, 16, open_files=256))
    with pytest.raises(LaunchedError):
        cli("run", "--demo")
    noted = capsys.readouterr().err
    assert "warning: open files: a process may open 256 files (ulimit -n) (ulimit -n 65536)" in noted


def test_a_dry_run_looks_at_nothing(cli, monkeypatch):
    monkeypatch.setattr(preflight, "before_run", lambda job, plan: pytest.fail("a dry run starts nothing"))
    answer = cli("run", "--demo", "--dry-run", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["argv"]
