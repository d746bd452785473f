from dataclasses import replace

import pytest

from ftplan import cli
from ftplan.errors import InputError
from ftplan.launcher import demo
from ftplan.launcher.summary import summarise
from ftplan.profiles import store
from ftplan.workflows import planning, running
from ftplan.workflows.running import demo_plan


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


def test_a_job_knows_what_each_rank_should_take_and_what_its_devices_could_do(tmp_path):
    ready = running.ready(plan_for("1xA100-80GB+1xRTX3090"), settings(tmp_path))
    job, estimate = ready.job, ready.plan.estimate
    assert [rank.process_bytes for rank in job.predicted_ranks] == [rank.process_bytes for rank in estimate.ranks]
    assert job.predicted_ranks[0].allocated_bytes == estimate.ranks[0].peak_allocated_bytes
    assert job.peak_flops_per_second > 312e12
    seconds = job.global_batch * 64 / estimate.tokens_per_second
    expected = job.mfu(job.global_batch * 64, job.global_batch * 64 * 64, seconds)
    assert job.predicted.mfu == pytest.approx(expected)
    assert 0 < expected < 1


def test_a_job_for_cpus_has_no_peak_to_compare_with(tmp_path):
    job = running.ready(plan_for("2xcpu"), settings(tmp_path)).job
    assert (job.peak_flops_per_second, job.predicted.mfu) == (None, None)
    assert job.model_flops_per_token > 0
    assert [rank.allocated_bytes for rank in job.predicted_ranks] == [None, None]


def test_a_plan_whose_model_is_not_here_trains_without_utilisation(tmp_path, monkeypatch):
    monkeypatch.setattr(running.promises, "load_model", unknown_model)
    job = running.ready(plan_for("2xcpu"), settings(tmp_path)).job
    assert (job.model_flops_per_token, job.predicted.mfu) == (None, None)
    assert job.predicted.peak_process_bytes is not None


def unknown_model(name):
    raise InputError(f"no model {name}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "wanbd"], "unknown tracker 'wanbd'"),
        (["--count-flops", "--profile"], "--count-flops and --profile disturb each other"),
    ],
)
def test_what_cannot_be_watched_is_bad_input(options, message, capsys, tmp_path):
    assert cli.run(["run", "--demo", "--dry-run", "--run-dir", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(running.trackers, "find_spec", lambda name: None)
    ready = running.ready(plan_for("2xcpu"), settings(tmp_path, hyperparameters={"trackers": ("wandb",)}))
    with pytest.raises(InputError, match="tracker wandb needs wandb"):
        running.launch(ready.job, ready.plan, lambda event: None)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_teaches_later_plans(tmp_path, monkeypatch):
    monkeypatch.setattr(running.engine, "launch", lambda job, on_event, replaces, kept: finished(job, on_event))
    steps = []
    for number in range(4):
        plan = plan_for("2xcpu")
        steps.append(plan.estimate.step_seconds)
        ready = running.ready(plan, settings(tmp_path / str(number)))
        running.launch(ready.job, ready.plan, lambda event: None)
    assert steps == pytest.approx([steps[0], steps[0], steps[0], 2 * steps[0]])
    assert [run.predicted.step_seconds for run in store.load().runs] == pytest.approx([steps[0]] * 4)


def test_a_run_that_cannot_be_recorded_says_so_and_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(running.engine, "launch", lambda job, on_event, replaces, kept: finished(job, on_event))
    ready = running.ready(plan_for("2xcpu"), settings(tmp_path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTPLAN_DATA", str(tmp_path / "file" / "folder"))
    events = []
    assert running.launch(ready.job, ready.plan, events.append).status == "finished"
    assert "later plans will not go by this run" in events[0].message


def test_what_the_user_says_of_the_data_is_in_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("FTPLAN_CACHE", str(tmp_path / "cache"))
    chosen = plan_for("2xcpu")
    job = running.ready(chosen, settings(tmp_path)).job
    assert (job.chat_template, job.data.skip_bad_rows) == (None, False)
    assert job.data_cache == str(tmp_path / "cache" / "data")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine"}\noops\n')
    given = {"data": (str(rows),), "skip_bad_rows": True, "chat_template": "chatml", "caches_data": False}
    job = running.ready(chosen, settings(tmp_path, **given)).job
    assert (job.chat_template, job.data.skip_bad_rows, job.data_cache) == ("chatml", True, None)
    with pytest.raises(InputError, match="line 2: malformed JSON"):
        running.ready(chosen, settings(tmp_path, data=(str(rows),)))


def test_a_described_set_is_in_the_job_with_its_files(tmp_path):
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "rows.json"}}')
    job = running.ready(plan_for("2xcpu"), settings(tmp_path, data=(str(tmp_path),), datasets=("mine",))).job
    (described,) = job.data.described
    assert (described.name, described.paths) == ("mine", (str(tmp_path / "rows.json"),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chat-template", "vicuna"], "unknown chat template 'vicuna'"),
        (["--data-format", "csv"], "form: Input should be 'auto', 'alpaca'"),
        (["--dataset", "mine"], "--dataset needs one dataset_info.json"),
        (["--data", "owner/name"], "owner/name is no file here"),
    ],
)
def test_data_that_cannot_be_had_ends_with_2(options, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.run(["run", "--demo", "--dry-run", *options]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_plan_for_two_machines_is_not_run_on_one(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path))
    with pytest.raises(InputError, match="the plan is for 2 machines, and nothing says where they meet"):
        running.prepare(ready.job)
    with pytest.raises(InputError, match="nothing says where they meet"):
        running.launch(ready.job, ready.plan, lambda event: None)
    assert not (tmp_path / "run").exists()
