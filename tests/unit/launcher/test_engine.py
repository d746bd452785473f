"""The engine with a worker that trains nothing: a script that writes events and ends as it is told."""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

import pytest
from jobs import make_config, make_job

from ftplan.errors import InputError, RunFailedError
from ftplan.launcher import artifacts, checkpoints, engine, records, resharding
from ftplan.launcher.checkpoints import Checkpoint
from ftplan.launcher.events import Event, Failed, Finished, Noted, RankMemory, Started, Stepped, to_line
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.launcher.rendezvous import Rendezvous

MEMORY = (RankMemory(0, None, None, 100, 100),)
STARTED = Started(2, 2, 16, 178, 10, 1, (1, 2))
STEPS = [Stepped(number, 2, 0.1, 8.0 - number, 1e-3, 1.0, 0.5, 10.0, MEMORY) for number in (1, 2)]
DONE = Finished(2, "finished", MEMORY)


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return make_job(run_dir=str(tmp_path / "run"))


def worker(monkeypatch: pytest.MonkeyPatch, events: list[Event], exit_code: int = 0) -> None:
    """Let launches start a script that writes ``events`` instead of torchrun."""
    lines = b"".join(map(to_line, events))
    script = (
        "import os, sys; job = sys.argv[1]; path = os.path.join(os.path.dirname(job), 'metrics.jsonl')\n"
        f"open(path, 'ab').write({lines!r}); print('worker was here'); sys.exit({exit_code})"
    )
    monkeypatch.setattr(artifacts, "argv", lambda job, job_file, python=None: [sys.executable, "-c", script, job_file])


def leave_checkpoint(run: RunDir, step: int) -> None:
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    checkpoints.seal(folder, step=step, world_size=2, global_batch=16)


def test_preparing_touches_nothing(job: TrainJob) -> None:
    prepared = engine.prepare(job)
    assert not Path(job.run_dir).exists()
    assert prepared.argv[-1] == f"{job.run_dir}/job.json"
    assert json.loads(prepared.files[f"{job.run_dir}/job.json"])["run_id"] == job.run_id
    assert prepared.env["TOKENIZERS_PARALLELISM"] == "false"


def test_a_run_that_finishes(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED, *STEPS, DONE])
    seen: list[Event] = []
    record = engine.launch(job, on_event=seen.append)
    assert seen == [STARTED, *STEPS, DONE]
    assert (record.status, record.steps, record.first_loss, record.last_loss) == ("finished", 2, 7.0, 6.0)
    run = RunDir(Path(job.run_dir))
    assert records.read_record(run) == record
    state = records.read_state(run)
    assert state is not None
    assert state.status == "finished"
    assert run.log.read_text() == "worker was here\n"
    assert engine.load_job(run) == job.absolute()


def test_a_run_that_fails(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED, STEPS[0], Failed(1, "out_of_memory", "no memory", "shrink it")], exit_code=1)
    leave = RunDir(Path(job.run_dir))
    with pytest.raises(RunFailedError, match="rank 1 failed: no memory") as caught:
        engine.launch(job)
    assert caught.value.exit_code == 3
    assert caught.value.hint.startswith("shrink it; log: ")
    record = records.read_record(leave)
    assert record is not None
    assert (record.status, record.steps) == ("failed", 1)


def test_input_that_a_worker_rejects(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [Failed(0, "input", "train.jsonl, line 3: no", "valid forms: …")], exit_code=1)
    with pytest.raises(InputError, match="line 3: no") as caught:
        engine.launch(job)
    assert caught.value.exit_code == 2


def test_what_fails_after_the_end_spoils_nothing(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED, DONE], exit_code=134)
    assert engine.launch(job).status == "finished"
    state = records.read_state(RunDir(Path(job.run_dir)))
    assert state is not None
    assert state.status == "finished"


def test_success_without_an_end_is_a_failure(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED])
    with pytest.raises(RunFailedError, match="ended with exit code 0 without a report"):
        engine.launch(job)


def test_resuming_goes_on_in_the_same_folder(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(Path(job.run_dir))
    worker(monkeypatch, [STARTED, STEPS[0]], exit_code=1)
    with pytest.raises(RunFailedError):
        engine.launch(job)
    with pytest.raises(InputError, match="no complete checkpoint"):
        engine.launch(engine.resume_job(run))
    leave_checkpoint(run, 1)
    (run.checkpoints / "checkpoint-2").mkdir()
    run.stop_request.touch()
    worker(monkeypatch, [STARTED, STEPS[1], DONE])
    seen: list[Event] = []
    record = engine.launch(engine.resume_job(run), on_event=seen.append)
    assert seen == [STARTED, STEPS[1], DONE]
    assert (record.first_loss, record.last_loss) == (7.0, 6.0)
    assert not (run.checkpoints / "checkpoint-2").exists()
    assert not run.stop_request.exists()
    state = records.read_state(run)
    assert state is not None
    assert state.attempt == 2


def test_a_checkpoint_has_to_fit_the_job(job: TrainJob) -> None:
    run = RunDir(Path(job.run_dir))
    leave_checkpoint(run, 1)
    resumed = job.model_copy(update={"resume": True})
    with pytest.raises(InputError, match="global batch of 16, not of 8"):
        engine.launch(
            resumed.model_copy(update={"global_batch": 8, "config": make_config(accumulation=1, sharding="ddp")})
        )
    run.job.write_text(job.model_dump_json())
    with pytest.raises(InputError, match="checkpoint of ddp cannot be read by fsdp2") as caught:
        engine.launch(resumed.model_copy(update={"config": make_config(sharding="fsdp2")}))
    assert caught.value.field == "sharding"


def test_deepspeeds_checkpoint_is_converted_for_another_number_of_processes(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(job.run_dir))
    leave_checkpoint(run, 1)
    converted: list[int] = []

    def universal(run: RunDir, checkpoint: Checkpoint, python: str) -> Path:
        assert python == sys.executable
        converted.append(checkpoint.step)
        return run.checkpoints / "universal-1"

    monkeypatch.setattr(resharding, "universal", universal)
    one = {"world_size": 1, "nproc_per_node": 1, "config": make_config(accumulation=4, sharding="zero2")}
    for ranks, config in ((one, [1]), ({"config": make_config(sharding="zero2")}, [])):
        worker(monkeypatch, [STARTED, STEPS[0]], exit_code=1)
        with pytest.raises(RunFailedError):
            engine.launch(job.model_copy(update={"resume": True, **ranks}))
        assert converted == config
        expected = str(run.checkpoints / "universal-1") if config else None
        assert engine.load_job(run).universal_checkpoint == expected
        converted.clear()


def test_a_damaged_checkpoint_is_set_aside_and_told(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(Path(job.run_dir))
    leave_checkpoint(run, 1)
    leave_checkpoint(run, 2)
    (run.checkpoints / "checkpoint-2" / "weights").write_bytes(b"x")
    worker(monkeypatch, [STARTED, *STEPS, DONE])
    seen: list[Event] = []
    engine.launch(job.model_copy(update={"resume": True}), on_event=seen.append)
    assert isinstance(seen[0], Noted)
    assert "damaged-checkpoint-2-1" in seen[0].message


def test_a_finished_run_is_not_resumed(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED, *STEPS, DONE])
    engine.launch(job)
    with pytest.raises(InputError, match="nothing to resume"):
        engine.launch(engine.resume_job(RunDir(Path(job.run_dir))))


def test_a_folder_in_use_is_not_used_again(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED, *STEPS, DONE])
    engine.launch(job)
    with pytest.raises(InputError, match="already holds a run"):
        engine.launch(job)


def test_two_processes_do_not_train_in_one_folder(job: TrainJob) -> None:
    run = RunDir(Path(job.run_dir))
    run.root.mkdir()
    with run.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is training"):
            engine.launch(job)


def test_what_would_not_train_as_configured_is_refused(tmp_path: Path) -> None:
    offloaded = make_config(sharding="fsdp2", offload="optimizer+params")
    with pytest.raises(InputError, match="offloads from GPUs") as caught:
        engine.launch(make_job(offloaded, run_dir=str(tmp_path / "a")))
    assert caught.value.field == "offload"
    with pytest.raises(InputError, match="several machines"):
        engine.launch(make_job(make_config(sharding="hsdp"), device="cuda", run_dir=str(tmp_path / "b")))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run in"):
        engine.load_job(RunDir(tmp_path))
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(InputError, match="not a job"):
        engine.load_job(RunDir(tmp_path))


def test_an_attempt_that_saved_nothing_is_begun_anew(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, [STARTED, Failed(0, "error", "broke")], exit_code=1)
    with pytest.raises(RunFailedError, match="broke"):
        engine.launch(job)
    with pytest.raises(InputError, match="holds a run that saved nothing") as caught:
        engine.launch(job)
    assert "--resume-or-start" in caught.value.hint
    worker(monkeypatch, [STARTED, *STEPS, DONE])
    assert engine.launch(job, replaces="unsaved", kept={"plan.json": "{}"}).status == "finished"
    assert (Path(job.run_dir) / "plan.json").read_text() == "{}"
    state = records.read_state(RunDir(Path(job.run_dir)))
    assert state is not None
    assert (state.status, state.attempt) == ("finished", 2)
    leave_checkpoint(RunDir(Path(job.run_dir)), 2)
    with pytest.raises(InputError, match="already holds a run"):
        engine.launch(job, replaces="unsaved", kept={"plan.json": "other"})
    assert (Path(job.run_dir) / "plan.json").read_text() == "{}"
    records.write_state(RunDir(Path(job.run_dir)), "failed", 2)
    assert engine.launch(job, replaces="everything").status == "finished"
    assert [one.step for one in checkpoints.complete(Path(job.run_dir) / "checkpoints-before-1")] == [2]


def test_a_folder_that_cannot_be_written_is_told(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to") as caught:
        engine.launch(job.model_copy(update={"run_dir": str(tmp_path / "file" / "run")}))
    assert caught.value.field == "run_dir"


def test_a_second_node_leaves_what_the_first_keeps(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(Path(job.run_dir))
    records.write_state(run, "running", 4)
    unfinished = run.checkpoints / "checkpoint-9"
    unfinished.mkdir(parents=True)
    meeting = Rendezvous(nodes=2, min_nodes=2, node_rank=1, host="node0", id="run")
    second = job.model_copy(update={"nproc_per_node": 1, "rendezvous": meeting})
    worker(monkeypatch, [STARTED, *STEPS, DONE])
    seen: list[Event] = []
    assert engine.launch(second, on_event=seen.append).status == "finished"
    assert seen == [STARTED, *STEPS, DONE]
    assert unfinished.exists()
    assert not run.metrics.exists()
    state, own = records.read_state(run), records.read_state(second.folder)
    assert state is not None
    assert own is not None
    assert (state.status, own.status, own.attempt) == ("running", "finished", 1)
    assert second.folder.log.read_text() == "worker was here\n"
