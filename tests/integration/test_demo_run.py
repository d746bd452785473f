"""Real training of the demo model: torchrun, gloo and TRL on CPUs. Each launch imports torch and trl: some seconds."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from run_facts import losses, runs, wait_until

from ftplan.errors import InputError, RunFailedError
from ftplan.launcher import chat_templates, checkpoints, demo, engine, monitor, records
from ftplan.launcher.events import Evaluated, Event, Failed, Finished, Noted, Saved, Started, Stepped
from ftplan.launcher.job import DataSource, TrainJob
from ftplan.launcher.records import RunDir
from ftplan.results import RunRecord
from ftplan.spec import RunConfig
from ftplan.workflows import merging, predicting, reporting

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

FP32 = {"weights_dtype": "fp32", "precision": "none"}
SEED_STEP = 27
"""A step between two checkpoints of the demo, which saves every 20."""


def demo_job(run_dir: Path, ranks: int, changes: Mapping[str, Any] | None = None, **config: Any) -> TrainJob:
    settings = {"stack": "trl", "gradient_checkpointing": False, "micro_batch": 8, "accumulation": 2 // ranks}
    settings |= {"sharding": "ddp" if ranks > 1 else "none"} | FP32 | config
    return TrainJob(
        run_id=run_dir.name,
        run_dir=str(run_dir),
        config=RunConfig(model=str(demo.model_path()), seq_len=demo.SEQ_LEN, **settings),
        inventory=f"{ranks}xcpu:4GB",
        global_batch=demo.GLOBAL_BATCH,
        world_size=ranks,
        nproc_per_node=ranks,
        device="cpu",
        **{"model": demo.model(), "tokenizer": demo.tokenizer(), "data": demo.data()}
        | dict(demo.LEARNING)
        | dict(changes or {}),
    )


def launch(job: TrainJob, react: Callable[[Event], None] = lambda event: None) -> tuple[RunRecord, list[Event]]:
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        react(event)

    return engine.launch(job, on_event=take), events


def seen(run_dir: Path) -> dict[int, tuple[int | None, int | None]]:
    """Tokens and samples seen at each step; of a step trained twice, by the later count."""
    events = monitor.read_all(RunDir(run_dir).metrics)
    return {event.step: (event.tokens_seen, event.samples_seen) for event in events if isinstance(event, Stepped)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord, list[Event]]:
    """The demo with LoRA on two processes, uninterrupted."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    return folder, *launch(demo_job(folder, 2))


def test_lora_on_two_processes_learns(reference: tuple[Path, RunRecord, list[Event]]) -> None:
    folder, record, events = reference
    assert (record.status, record.steps, record.resumed_from_step) == ("finished", 60, None)
    assert record.first_loss is not None
    assert record.last_loss is not None
    assert record.first_loss > 6.5
    assert record.last_loss < 4.0
    started = next(event for event in events if isinstance(event, Started))
    assert (started.world_size, started.total_steps, len(set(started.pids))) == (2, 60, 2)
    assert 0 < started.trainable_params < started.total_params
    assert [event.step for event in events if isinstance(event, Saved)] == [20, 40, 60]
    assert isinstance(events[-1], Finished)
    assert (folder / "final" / "adapter_model.safetensors").exists()


def test_what_it_used_is_on_record(reference: tuple[Path, RunRecord, list[Event]]) -> None:
    folder, record, events = reference
    measured = record.measured
    assert measured.peak_allocated_bytes is None
    assert measured.peak_process_bytes is not None
    assert measured.host_bytes is not None
    assert measured.step_seconds is not None
    assert 2e8 < measured.peak_process_bytes < measured.host_bytes
    assert 0 < measured.step_seconds < 5
    steps = [event for event in events if isinstance(event, Stepped)]
    assert all(len(event.memory) == 2 for event in steps)
    assert records.read_record(RunDir(folder)) == record
    assert set(record.versions) >= {"torch", "transformers", "trl", "peft"}


def test_the_two_newest_checkpoints_are_kept(reference: tuple[Path, RunRecord, list[Event]]) -> None:
    folder = RunDir(reference[0]).checkpoints
    assert [checkpoint.step for checkpoint in checkpoints.complete(folder)] == [60, 40]
    newest = checkpoints.latest_complete(folder)
    assert newest is not None
    assert (newest.world_size, newest.global_batch) == (2, 16)


def test_what_comes_after_a_run(
    reference: tuple[Path, RunRecord, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report, merge and predict, from the run's folder alone: its base was drawn from the seed and is nowhere."""
    monkeypatch.chdir(tmp_path)
    folder = reference[0]
    told = reporting.report(folder)
    assert isinstance(told, reporting.RunReport)
    assert (told.state, told.steps, len(told.attempts), len(told.memory)) == ("finished", 60, 1, 2)
    assert [one.step for one in told.checkpoints] == [60, 40]

    merged = merging.merge(folder, Path("merged"), on_event=lambda event: None)
    assert merged.changed_weights == 28
    assert merged.peak_bytes <= merged.stated_peak_bytes

    def predicted(trained: Path) -> predicting.Prediction:
        settings = predicting.PredictSettings(
            demo.data().paths, metrics=("loss",), limit=40, out=tmp_path / f"{trained.name}.jsonl"
        )
        return predicting.predict(trained, settings, lambda event: None)

    run, model = predicted(folder), predicted(Path("merged"))
    assert run.before is not None
    assert run.before.loss is not None
    assert run.after.loss is not None
    # The run's own losses: of all rows at the first step and over the last ones.
    assert run.before.loss > 6.5
    assert run.after.loss < 4.0
    assert model.before is None
    assert model.after.loss == pytest.approx(run.after.loss, rel=1e-5)
    assert len((tmp_path / "merged.jsonl").read_text().splitlines()) == 40


def test_a_killed_worker_ends_the_run_and_resuming_changes_nothing(
    reference: tuple[Path, RunRecord, list[Event]], tmp_path: Path
) -> None:
    pids: list[int] = []
    killed_at: list[float] = []

    def kill_one(event: Event) -> None:
        if isinstance(event, Started):
            pids.extend(event.pids)
        if isinstance(event, Stepped) and event.step == SEED_STEP:
            killed_at.append(time.monotonic())
            os.kill(pids[1], signal.SIGKILL)

    folder = tmp_path / "killed"
    with pytest.raises(RunFailedError, match="rank 1 was killed by SIGKILL") as caught:
        launch(demo_job(folder, 2), kill_one)
    assert time.monotonic() - killed_at[0] < 20
    assert "step 20 is saved" in caught.value.hint
    assert not any(map(runs, pids))

    run = records.newest_resumable(tmp_path)
    assert run == RunDir(folder)
    # What a kill in the middle of a save leaves: a folder with the highest number, and no manifest.
    (run.checkpoints / "checkpoint-25").mkdir()
    record, events = launch(engine.resume_job(run))
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == list(range(21, 61))
    assert (record.status, record.resumed_from_step, record.steps) == ("finished", 20, 60)
    assert losses(folder) == losses(reference[0])
    assert seen(folder) == seen(reference[0])
    assert not (run.checkpoints / "checkpoint-25").exists()


def test_a_run_stopped_on_request_goes_on_with_another_number_of_processes(
    reference: tuple[Path, RunRecord, list[Event]], tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "stopped"
    record, events = launch(demo_job(folder, 2), stop)
    assert record.status == "interrupted"
    saved = checkpoints.latest_complete(RunDir(folder).checkpoints)
    assert saved is not None
    assert saved.step == record.steps < 60
    assert isinstance(events[-1], Finished)

    stop_after = saved.step + 10
    record, events = launch(demo_job(folder, 1, {"resume": True, "threads_per_process": 2}), stop_at(stop_after))
    assert record.resumed_from_step == saved.step
    expected = losses(reference[0])
    for step, loss in losses(folder).items():
        assert loss == pytest.approx(expected[step], rel=2e-3), step


def stop_at(step: int) -> Callable[[Event], None]:
    """Ask this process to stop once the step is reported."""

    def react(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == step:
            signal.raise_signal(signal.SIGINT)

    return react


def test_full_fine_tuning_in_bf16_on_one_process(tmp_path: Path) -> None:
    job = demo_job(
        tmp_path / "full",
        1,
        {"max_steps": 10, "learning_rate": 3e-3, "threads_per_process": 2},
        method="full",
        weights_dtype="bf16",
        precision="bf16",
        loss_path="full",
        gradient_checkpointing=True,
    )
    record, events = launch(job)
    started = next(event for event in events if isinstance(event, Started))
    assert started.trainable_params == started.total_params
    assert record.first_loss is not None
    assert record.last_loss is not None
    assert record.last_loss < record.first_loss - 1.5
    assert (tmp_path / "full" / "final" / "model.safetensors").exists()
    assert list((tmp_path / "full" / "tensorboard").iterdir())


def test_qlora_adapts_query_and_value(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"max_steps": 3, "save_steps": 3, "data": demo.data().model_copy(update={"eval_fraction": 0.1})}
    job = demo_job(tmp_path / "run", 1, settings, method="qlora", lora_targets="qv", precision="bf16")
    record, events = launch(job)
    assert record.status == "finished"
    assert [event.step for event in events if isinstance(event, Evaluated)] == [3]
    adapter = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
    started = next(event for event in events if isinstance(event, Started))
    # 4 layers, rank 16: q is 128 -> 128, v is 128 -> 64.
    assert started.trainable_params == 4 * 16 * ((128 + 128) + (128 + 64))


HELLO = [("user", "Say hello."), ("assistant", "Hello."), ("user", "Say goodbye."), ("assistant", "Goodbye.")]
FORMS: dict[str, dict[str, Any]] = {
    "sharegpt": {"conversations": [{"from": role, "value": text} for role, text in HELLO]},
    "chat": {"messages": [{"role": role, "content": text} for role, text in HELLO]},
    "prompt-completion": {"prompt": "Correct: she go home. ", "completion": "She goes home."},
    "text": {"text": "The cat licked its paw, and the dog slept."},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_trains(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"{form}.json"
    path.write_text(json.dumps([FORMS[form]] * 24))
    data = DataSource(paths=(str(path),), eval_fraction=0.25)
    record, events = launch(demo_job(tmp_path / "run", 1, {"data": data, "max_steps": 3, "save_steps": 3}))
    assert record.status == "finished"
    assert record.first_loss is not None
    assert record.last_loss is not None
    assert record.last_loss < record.first_loss
    assert [event.step for event in events if isinstance(event, Evaluated)] == [3]
    assert next(event for event in events if isinstance(event, Started)).samples == 18


def test_a_tokenizer_without_a_chat_template_gets_one_and_ranks_share_the_tokens(tmp_path: Path) -> None:
    plain = tmp_path / "tokenizer"
    plain.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (plain / name).write_bytes((demo.model_path() / name).read_bytes())
    source = demo.tokenizer().model_copy(update={"location": str(plain)})
    changes = {"tokenizer": source, "max_steps": 2, "data_cache": str(tmp_path / "cache")}
    record, events = launch(demo_job(tmp_path / "run", 2, changes))
    assert record.status == "finished"
    (note,) = [event.message for event in events if isinstance(event, Noted)]
    assert note.startswith("the tokenizer has no chat template: conversations are written by 'alpaca'")
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 1
    saved = (tmp_path / "run" / "final" / "chat_template.jinja").read_text()
    assert saved == chat_templates.template("alpaca").text


def test_a_loss_that_is_no_number_fails_the_run(tmp_path: Path) -> None:
    job = demo_job(tmp_path / "run", 1, {"learning_rate": 1e30, "lr_scheduler": "constant", "warmup_steps": 0})
    with pytest.raises(RunFailedError, match=r"the loss is (nan|inf) at step") as caught:
        launch(job)
    assert "learning rate" in caught.value.hint
    failures = [event for event in monitor.read_all(RunDir(tmp_path / "run").metrics) if isinstance(event, Failed)]
    assert failures[0].kind == "non_finite_loss"
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run").values())


def test_bad_data_met_by_a_worker_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"txt": "not fine"}\n')
    with pytest.raises(InputError, match="line 2: not a row in text form"):
        launch(demo_job(tmp_path / "run", 1, {"data": DataSource(paths=(str(path),))}))


def test_workers_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    job_file = tmp_path / "job.json"
    job_file.write_text(demo_job(tmp_path / "run", 2).model_dump_json())
    script = (
        "import sys; from ftplan.launcher import engine; from ftplan.launcher.job import TrainJob\n"
        "engine.launch(TrainJob.model_validate_json(open(sys.argv[1]).read()))"
    )
    metrics = RunDir(tmp_path / "run").metrics
    with subprocess.Popen([sys.executable, "-c", script, str(job_file)]) as launcher:
        training = wait_until(lambda: any(isinstance(e, Stepped) for e in monitor.read_all(metrics)), 90)
        launcher.kill()
    assert training
    started = next(event for event in monitor.read_all(metrics) if isinstance(event, Started))
    assert wait_until(lambda: not any(map(runs, started.pids)), 15)
    run = RunDir(tmp_path / "run")
    state = records.read_state(run)
    assert state is not None
    assert records.is_abandoned(run, state)
