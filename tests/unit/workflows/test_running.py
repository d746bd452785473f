from dataclasses import replace

import pytest

from ftplan import cli
from ftplan.errors import InputError
from ftplan.files import write_atomic
from ftplan.launcher import checkpoints, demo, records
from ftplan.launcher.records import RunDir
from ftplan.launcher.summary import summarise
from ftplan.profiles import store
from ftplan.workflows import planning, running
from ftplan.workflows.nodes import NodeOptions
from ftplan.workflows.running import demo_plan

SECOND = NodeOptions(nodes="2", node_rank=1, endpoint="127.0.0.1:4000")


def plan_for(gpus):
    return planning.plan(planning.plan_request(gpus, model=str(demo.model_path()), seq_len=64, global_batch=8))


def settings(tmp_path, **changes):
    return running.demo_settings(running.RunSettings(run_dir=tmp_path / "run", **changes))


def test_a_plan_for_gpus_is_not_started_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "detect_gpus", lambda: ())
    ready = running.ready(plan_for("2x24GB"), settings(tmp_path))
    with pytest.raises(InputError, match="2 GPUs, and this machine has 0"):
        running.launch(ready.job, ready.plan, lambda event: None)
    assert not (tmp_path / "run").exists()


def test_the_demo_takes_the_users_length_instead_of_its_own(tmp_path):
    assert running.ready(plan_for("2xcpu"), settings(tmp_path)).job.max_steps == demo.LEARNING["max_steps"]
    epochs = running.ready(plan_for("2xcpu"), settings(tmp_path, hyperparameters={"epochs": 2.0})).job
    assert (epochs.epochs, epochs.max_steps) == (2.0, None)


def test_weights_have_to_be_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no weights"):
        running.weights_source(str(tmp_path))


@pytest.mark.parametrize("option", [["--learning-rate", "1"], ["--max-steps", "9"], ["--model", "gpt2"], ["--demo"]])
def test_a_resumed_run_takes_no_other_options(option, capsys):
    assert cli.run(["run", "--resume", "--dry-run", *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_a_model_with_few_positions_is_planned_for_those(capsys):
    plan = planning.plan(planning.plan_request("1x24GB", model="gpt2"))
    assert plan.config is not None
    assert plan.config.seq_len == 1024


def test_least_memory_is_looked_for_in_every_method():
    plan = planning.plan(planning.plan_request("1x24GB", model="Qwen-7B", objective="memory"))
    assert plan.config is not None
    assert plan.estimate is not None
    assert plan.config.method == "qlora"
    needs = [one.estimate.needed_bytes for one in plan.alternatives if one.estimate is not None]
    assert plan.estimate.needed_bytes <= min(needs)


def test_the_price_of_a_better_method_is_said():
    plan = planning.plan(planning.plan_request("2x24GB", model="Qwen-7B"))
    because = next(reason.because for reason in plan.reasons if reason.field == "method")
    assert "qlora would be" in because
    assert "faster here" in because


def finished(job, on_event):
    """The record of a run that took twice as long as predicted."""
    measured = replace(job.predicted, step_seconds=2 * job.predicted.step_seconds)
    return replace(summarise(job, "finished", [], [], 1.0), measured=measured)


def test_a_finished_run_teaches_later_plans(tmp_path, monkeypatch):
    monkeypatch.setattr(running.engine, "launch", lambda job, on_event, anew: finished(job, on_event))
    steps = []
    for number in range(4):
        plan = plan_for("2xcpu")
        steps.append(plan.estimate.step_seconds)
        ready = running.ready(plan, settings(tmp_path / str(number)))
        running.launch(ready.job, ready.plan, lambda event: None)
    assert steps == pytest.approx([steps[0], steps[0], steps[0], 2 * steps[0]])
    assert [run.predicted.step_seconds for run in store.load().runs] == pytest.approx([steps[0]] * 4)


def test_a_run_that_cannot_be_recorded_says_so_and_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(running.engine, "launch", lambda job, on_event, anew: finished(job, on_event))
    ready = running.ready(plan_for("2xcpu"), settings(tmp_path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTPLAN_DATA", str(tmp_path / "file" / "folder"))
    events = []
    assert running.launch(ready.job, ready.plan, events.append).status == "finished"
    assert "later plans will not go by this run" in events[0].message


def stopped(run, status, *, step=None):
    """Leave a run in this state, with a checkpoint or none."""
    records.write_state(run, status, 1)
    if step is not None:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        checkpoints.seal(folder, step=step, world_size=2, global_batch=demo.GLOBAL_BATCH)


def test_a_requeued_run_goes_on_begins_anew_or_is_done(tmp_path):
    ready = running.ready(demo_plan(), settings(tmp_path))
    run = RunDir(tmp_path / "run")
    assert running.going_on(ready.job) == ready.job
    write_atomic(run.job, ready.job.model_dump_json())
    stopped(run, "failed")
    assert running.going_on(ready.job) == ready.job
    stopped(run, "failed", step=20)
    assert running.going_on(ready.job) == ready.job.model_copy(update={"resume": True})
    record = summarise(ready.job, "finished", [], [], 1.0)
    records.write_record(run, record)
    stopped(run, "finished")
    assert running.going_on(ready.job) == record


def test_resume_or_start_of_a_finished_run_shows_its_record(tmp_path, capsys):
    ready = running.ready(demo_plan(), settings(tmp_path))
    run = RunDir(tmp_path / "run")
    records.write_record(run, summarise(ready.job, "finished", [], [], 1.0))
    stopped(run, "finished")
    words = ["run", "--demo", "--run-dir", str(tmp_path / "run"), "--resume-or-start", "--dry-run"]
    assert cli.run(words) == 0
    assert "finished: 0 steps" in capsys.readouterr().out


def test_a_second_node_follows_the_first(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    assert ready.job.folder.home == tmp_path / "run" / "nodes" / "1"
    assert (ready.job.run_id, ready.job.nodes, ready.job.nproc_per_node) == ("run", 2, 1)
    stopped(RunDir(tmp_path / "run"), "failed", step=20)
    assert running.going_on(ready.job) == ready.job


def test_nodes_that_resume_may_meet_elsewhere(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    write_atomic(tmp_path / "run" / "job.json", ready.job.model_dump_json())
    moved = NodeOptions(nodes="2", node_rank=0, endpoint="127.0.0.1:4001")
    resumed = running.resumed(tmp_path / "run", moved)
    assert resumed.resume
    assert resumed.rendezvous is not None
    assert (resumed.rendezvous.node_rank, resumed.rendezvous.port, resumed.rendezvous.id) == (0, 4001, "run")
    assert running.resumed(tmp_path / "run").rendezvous == ready.job.rendezvous


def test_a_second_node_with_a_disk_of_its_own_resumes_its_own_part(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    write_atomic(ready.job.folder.job, ready.job.model_dump_json())
    resumed = running.resumed(tmp_path / "run", SECOND)
    assert resumed == ready.job.model_copy(update={"resume": True})


def test_a_plan_for_two_machines_is_not_run_on_one(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path))
    with pytest.raises(InputError, match="the plan is for 2 machines, and nothing says where they meet"):
        running.prepare(ready.job)
    with pytest.raises(InputError, match="nothing says where they meet"):
        running.launch(ready.job, ready.plan, lambda event: None)
    assert not (tmp_path / "run").exists()
