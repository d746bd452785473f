"""What ``ftplan doctor`` looks at: plans with and without data, runs, data that cannot be read."""

import pytest

from ftplan.errors import DataError
from ftplan.files import write_atomic
from ftplan.launcher.preflight.findings import Status
from ftplan.results import to_json
from ftplan.workflows import examining, planning, resuming, running


@pytest.fixture(scope="module")
def plan():
    return running.demo_plan()


def demo_settings(**given):
    return running.demo_settings(running.RunSettings(**given))


def test_a_plan_without_data_has_no_job(plan, tmp_path):
    settings = running.RunSettings(run_dir=tmp_path, hyperparameters={"save_total_limit": 5})
    subject = examining.of_plan(plan, settings)
    assert (subject.job, subject.run_dir, subject.needs.keep) == (None, tmp_path, 5)
    assert examining.of_plan(plan, running.RunSettings()).needs.keep == 2


def test_a_plan_with_data_is_the_job_that_would_run(plan, tmp_path):
    subject = examining.of_plan(plan, demo_settings(run_dir=tmp_path / "run"))
    assert subject.job is not None
    assert subject.job.config == plan.config
    assert subject.problems == ()
    assert not (tmp_path / "run").exists()


def test_a_run_is_looked_at_as_it_would_be_resumed(plan, tmp_path):
    job = running.ready(plan, demo_settings(run_dir=tmp_path / "run")).job
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text(job.model_dump_json())
    alone = examining.of_run(tmp_path / "run")
    (tmp_path / "run" / "plan.json").write_text(to_json(plan))
    with_plan = examining.of_run(tmp_path / "run")
    assert alone.job == with_plan.job == job
    assert alone.needs == with_plan.needs


def test_a_run_that_moved_is_no_longer_its_plan(plan, tmp_path):
    """It was resumed on one device, and its plan is for two."""
    job = running.ready(plan, demo_settings(run_dir=tmp_path / "run")).job
    write_atomic(tmp_path / "run" / "job.json", job.model_dump_json())
    write_atomic(tmp_path / "run" / "plan.json", to_json(plan))
    before = examining.of_run(tmp_path / "run").needs
    moved = resuming.resumed_on(tmp_path / "run", "1xcpu:4GB")
    write_atomic(tmp_path / "run" / "job.json", moved.model_dump_json())
    after = examining.of_run(tmp_path / "run").needs
    assert (before.config.sharding, after.config.sharding) == ("ddp", "none")
    assert after.host_bytes < before.host_bytes


def test_a_rehearsal_saves_nothing(plan, tmp_path):
    job = running.ready(plan, running.RunSettings(run_dir=tmp_path / "run", rehearse=True)).job
    write_atomic(tmp_path / "run" / "job.json", job.model_dump_json())
    assert not examining.of_run(tmp_path / "run").needs.saves


def test_data_that_cannot_be_read_is_a_finding(plan, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": "not fine"}\n')
    subject = examining.of_plan(plan, demo_settings(data=(str(bad),)))
    (found,) = subject.problems
    assert (found.check, found.status) == ("data", Status.ERROR)
    assert "line 2" in found.message
    assert subject.job is None


def test_weights_that_are_not_there_are_a_finding(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "fine"}\n')
    (tmp_path / "empty").mkdir()
    settings = running.RunSettings((str(data),), weights=str(tmp_path / "empty"))
    (found,) = examining.of_plan(planning.plan(planning.plan_request("1xcpu:64GB", model="gpt2")), settings).problems
    assert (found.check, found.status) == ("weights", Status.ERROR)


def test_data_that_cannot_be_tokenized_are_a_finding(plan, tmp_path, monkeypatch):
    def fails(job):
        raise DataError("no", hint="because", field="data")

    monkeypatch.setattr(examining.data_lengths, "measured", fails)
    monkeypatch.setattr(examining.environment, "ask_torch", lambda modules: (a_torch(), ""))
    found = examining.examine(examining.of_plan(plan, demo_settings(run_dir=tmp_path))).findings
    assert [(each.message, each.fix) for each in found if each.check == "data"] == [("no", "because")]


def a_torch():
    return examining.environment.Torch("2.13.0+cpu", None)
