"""Tuning with trials that are played: what is measured, kept and chosen."""

import json
from dataclasses import replace

import pytest

from ftplan.errors import InputError, RunFailedError
from ftplan.launcher import demo
from ftplan.launcher.trials import Trialled
from ftplan.planner.contenders import ALIKE, contenders
from ftplan.profiles import store
from ftplan.profiles.gpus import load_gpu
from ftplan.profiles.models import load_model
from ftplan.results import Plan, from_json, to_json
from ftplan.units import GIB
from ftplan.workflows import planning, running, tuning
from ftplan.workflows.clusters import known_cluster

RTX4090 = load_gpu("RTX4090")


def plan_for(gpus="1xRTX4090", model="Qwen2.5-0.5B", **fields):
    return planning.plan(planning.plan_request(gpus, model=model, **{"seq_len": 512, "global_batch": 16, **fields}))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with four RTX 4090 whose trials end as they are told to; returns what was asked for."""
    monkeypatch.setenv("FTPLAN_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "detect_gpus", lambda: (RTX4090,) * 4)
    asked = []

    def play(*results):
        """Let the trials end so, in their order; the last for all that follow."""

        def run_trials(trials, setup, *, folder, deadline, on_result):
            asked.append((trials, setup, folder))
            for number, trial in enumerate(trials):
                on_result(replace(results[min(number, len(results) - 1)], trial=trial.id))

        monkeypatch.setattr(tuning, "run_trials", run_trials)
        return asked

    return play


def measured(tokens_per_second, process_bytes=10 * GIB):
    return Trialled("", "measured", 8192 / tokens_per_second, None, tokens_per_second, process_bytes=process_bytes)


OUT_OF_MEMORY = Trialled("", "out_of_memory", message="CUDA out of memory")
FAILED = Trialled("", "failed", message="RuntimeError: shapes differ")
NO_TIME = Trialled("", "no_time")


def tune(chosen, **options):
    told = []
    return tuning.tune(chosen, told.append, **options), told


def because(plan, field):
    (only,) = [reason for reason in plan.reasons if reason.field == field]
    return only


def test_the_fastest_is_taken_and_the_rest_compared_with_it(machine):
    machine(measured(1000.0), measured(4000.0), measured(2000.0))
    chosen = plan_for()
    tuned, told = tune(chosen, trials=3)
    assert tuple(told) == tuned.tried
    best = tuned.tried[1]
    assert tuned.plan.config == best.candidate.config != chosen.config
    assert tuned.plan.estimate.fits
    assert [reason.field for reason in tuned.plan.reasons] == ["tune"]
    reason = because(tuned.plan, "tune")
    assert reason.value == best.result.trial
    assert reason.because == "the fastest of 3 that were measured here: 4,000 tokens/s"
    assert [one.speed_ratio for one in reason.compared] == [0.25, 0.5]
    assert tuned.plan.request == chosen.request


def test_a_plan_that_is_confirmed_keeps_its_reasons(machine):
    machine(measured(4000.0), measured(1000.0))
    chosen = plan_for()
    tuned, _ = tune(chosen)
    assert tuned.plan.config == chosen.config
    assert tuned.plan.estimate == chosen.estimate
    assert tuned.plan.reasons[:-1] == chosen.reasons
    assert tuned.plan.reasons[-1].field == "tune"


def test_out_of_memory_is_a_result(machine):
    machine(OUT_OF_MEMORY, FAILED, measured(500.0), NO_TIME)
    tuned, _ = tune(plan_for())
    assert [one.result.status for one in tuned.tried] == ["out_of_memory", "failed", "measured", "no_time"]
    assert tuned.plan.config == tuned.tried[2].candidate.config
    assert because(tuned.plan, "tune").because.startswith("the fastest of 1 ")


@pytest.mark.parametrize(
    ("results", "hint"),
    [
        ([OUT_OF_MEMORY], "CUDA out of memory"),
        ([NO_TIME, FAILED], "RuntimeError: shapes differ"),
        ([NO_TIME], "the budget was too small"),
    ],
)
def test_nothing_measured_is_a_failure(machine, results, hint):
    machine(*results)
    with pytest.raises(RunFailedError, match="nothing could be measured") as caught:
        tune(plan_for())
    assert (caught.value.exit_code, caught.value.hint) == (3, hint)
    assert store.load().runs == ()


def test_what_was_measured_is_recorded_once(machine):
    machine(measured(1000.0), OUT_OF_MEMORY, measured(2000.0, None))
    chosen = plan_for()
    first, _ = tune(chosen, trials=3)
    runs = store.load().runs
    assert [run.run_id.rpartition("-")[0] != "" for run in runs] == [True, True]
    for run, tried in zip(runs, (first.tried[0], first.tried[2]), strict=True):
        config, told = tried.candidate.config, tried.candidate.estimate
        assert run.run_id.endswith(tried.result.trial)
        assert (run.devices, run.ranks, run.model) == (("RTX4090",), 1, "Qwen2.5-0.5B")
        assert (run.method, run.sharding, run.offload) == (config.method, config.sharding, config.offload)
        assert (run.predicted.process_bytes, run.predicted.step_seconds) == (told.process_bytes, told.step_seconds)
        assert run.measured.process_bytes == tried.result.process_bytes
        assert run.measured.step_seconds == tried.result.step_seconds
    second, _ = tune(chosen, trials=3)
    assert store.load().runs == runs
    assert second.folder == first.folder


def test_what_was_learned_does_not_change_the_names_of_trials(machine):
    """Records change predictions, and with them the order: a trial that was made must be found again."""
    asked = machine(measured(500.0))
    tune(plan_for("4xRTX4090"), trials=8)
    tune(plan_for("4xRTX4090"), trials=8)
    (first, _, folder), (second, _, again) = asked
    assert folder == again
    configs = {trial.id: trial.config for trial in first}
    assert len(configs) == len(first)
    known = [trial for trial in second if trial.id in configs]
    assert known
    assert all(configs[trial.id] == trial.config for trial in known)


def test_another_question_has_another_folder_in_the_one_that_is_named(machine, tmp_path):
    """Results are found by the trial's id: those of another model must not be taken for this one's."""
    machine(measured(1000.0))
    folders = {
        tune(plan_for(**changes), folder=tmp_path / "here")[0].folder
        for changes in ({}, {"model": "gpt2"}, {"global_batch": 32}, {"seq_len": 256}, {})
    }
    assert len(folders) == 4
    assert {folder.rpartition("/")[0] for folder in folders} == {str(tmp_path / "here")}


def test_trials_are_told_the_devices_and_the_architecture(machine):
    asked = machine(measured(1000.0))
    tune(plan_for("2xRTX4090:20GB"), trials=2)
    ((trials, setup, folder),) = asked
    assert len(trials) == 2
    assert (setup.world_size, setup.device) == (2, "cuda")
    assert {trial.cap_bytes for trial in trials} == {20 * 10**9}
    config = json.loads((folder / "architecture" / "config.json").read_text())
    assert config["model_type"] == "qwen2"


def test_a_whole_card_has_no_cap_nor_has_a_process_on_cpus(machine):
    asked = machine(measured(1000.0))
    tune(plan_for("1xRTX4090"), trials=1)
    tune(plan_for("2xcpu:4GB", str(demo.model_path()), seq_len=64, global_batch=8), trials=1)
    assert [trial.cap_bytes for trials, _, _ in asked for trial in trials] == [None, None]
    assert [setup.device for _, setup, _ in asked] == ["cuda", "cpu"]


@pytest.mark.parametrize(
    ("gpus", "message"), [("8xRTX4090", "8 GPUs, and this machine has 4"), ("2x2xRTX4090", "of one machine")]
)
def test_devices_that_are_not_here_cannot_be_tried(machine, gpus, message):
    asked = machine(measured(1000.0))
    with pytest.raises(InputError, match=message) as caught:
        tune(plan_for(gpus))
    assert (caught.value.exit_code, caught.value.field) == (2, "gpus")
    assert asked == []


def test_a_tuned_plan_survives_json_and_its_document_holds_every_trial(machine):
    machine(measured(1000.0), OUT_OF_MEMORY)
    tuned, _ = tune(plan_for(), trials=2)
    document = tuning.tuned_document(tuned)
    assert json.loads(json.dumps(document)) == document
    assert from_json(Plan, json.dumps(document["plan"])) == from_json(Plan, to_json(tuned.plan)) == tuned.plan
    assert [one["result"]["status"] for one in document["tried"]] == ["measured", "out_of_memory"]
    assert document["folder"] == tuned.folder


class TestContenders:
    def found(self, chosen, most=64):
        return contenders(chosen, load_model(chosen.config.model), known_cluster(chosen.request.inventory), most)

    @pytest.mark.parametrize(
        ("gpus", "fields"),
        [
            ("1xRTX4090", {}),
            ("4xRTX4090", {"method": "full"}),
            ("2xRTX4090", {"model": "Qwen2.5-7B", "seq_len": 1024}),
            ("1xRTX4090:8GB", {"model": "Qwen2.5-7B"}),
        ],
    )
    def test_the_plan_comes_first_and_all_train_alike(self, gpus, fields):
        chosen = plan_for(gpus, **fields)
        found = self.found(chosen)
        assert found[0].config == chosen.config
        assert len(found) > 1
        configs = [one.config for one in found]
        assert len({config.model_dump_json() for config in configs}) == len(configs)
        assert {tuple(getattr(config, field) for field in ALIKE) for config in configs} == {
            tuple(getattr(chosen.config, field) for field in ALIKE)
        }
        assert chosen.config.offload == "none"
        assert {config.offload for config in configs} == {"none"}
        ranks = known_cluster(chosen.request.inventory).world_size
        assert {one.micro_batch * one.accumulation * (1 if one.sharding == "none" else ranks) for one in configs} == {
            chosen.global_batch
        }
        speeds = [one.estimate.tokens_per_second for one in found[1:]]
        assert speeds == sorted(speeds, reverse=True)
        assert all(one.estimate.fits for one in found)

    def test_of_another_kind_the_best_and_of_the_plans_own_its_neighbours(self):
        chosen = plan_for()
        kinds = {}
        for one in self.found(chosen):
            config = one.config
            kind = (config.sharding, config.offload, config.gradient_checkpointing, config.kernels)
            kinds.setdefault(kind, []).append(config.micro_batch)
        own, *others = kinds.values()
        assert set(own) <= {chosen.config.micro_batch * factor for factor in (0.5, 1, 2)}
        assert all(len(sizes) == 1 for sizes in others)

    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_no_more_than_asked_for(self, most):
        assert len(self.found(plan_for(), most)) == most

    def test_a_plan_that_offloads_is_compared_with_others_that_do(self):
        found = self.found(plan_for("1xRTX4090", pins={"offload": "optimizer"}))
        assert {one.config.offload for one in found} == {"optimizer"}

    def test_a_rank_that_the_planner_took_is_that_of_all(self):
        chosen = plan_for(lora_rank="auto")
        assert chosen.config.lora_rank > 16
        found = self.found(chosen)
        assert len(found) > 1
        assert {one.config.lora_rank for one in found} == {chosen.config.lora_rank}
