"""What follows a failure, decided without starting anything: the engine is replaced by a list of how attempts end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ftplan.errors import InputError, RunFailedError
from ftplan.files import write_atomic
from ftplan.launcher import checkpoints, demo, engine, monitor
from ftplan.launcher.events import Recovering
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.launcher.records import RunDir
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.launcher.summary import summarise
from ftplan.results import to_json
from ftplan.spec import RunConfig
from ftplan.workflows import planning, recovering
from ftplan.workflows.recovering import Patience

MEMORY = RunFailedError("rank 0 failed: CUDA out of memory", kind="out_of_memory")
KILLED = RunFailedError("rank 1 was killed by SIGKILL", kind="killed")
LOST = RunFailedError("rank 0 failed: Connection closed by peer", kind="lost_rank")


def job_in(folder: Path, **changes) -> TrainJob:
    config = RunConfig(
        model=str(demo.model_path()),
        seq_len=128,
        stack="trl",
        micro_batch=8,
        gradient_checkpointing=False,
        sharding="ddp",
        weights_dtype="fp32",
        precision="none",
    )
    fields = {
        "run_id": "run",
        "run_dir": str(folder),
        "config": config,
        "inventory": "2xcpu:4GB",
        "global_batch": 16,
        "world_size": 2,
        "nproc_per_node": 2,
        "device": "cpu",
        "model": Source(kind="folder", location="weights"),
        "tokenizer": demo.tokenizer(),
        "data": DataSource(synthetic=True),
        "max_steps": 10,
    }
    return TrainJob(**(fields | changes))


class Attempts:
    """Stands for the engine: each attempt saves up to a step (None: nothing) and ends with an error (None: well)."""

    def __init__(self, *ends: tuple[int | None, Exception | None]) -> None:
        self.ends = list(ends)
        self.jobs: list[TrainJob] = []
        self.replaces: list[str] = []

    def launch(self, job, *, on_event, replaces, kept):
        self.jobs.append(job)
        self.replaces.append(replaces)
        step, error = self.ends.pop(0)
        run = RunDir(Path(job.run_dir))
        engine.admit(run, job, on_event, replaces=replaces)
        if step is not None:
            folder = run.checkpoints / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(b"w")
            checkpoints.seal(folder, step=step, world_size=job.world_size, global_batch=job.global_batch)
        if error is not None:
            raise error
        return summarise(job, "finished", [], monitor.read_all(run.metrics), 1.0)


@pytest.fixture
def run(tmp_path):
    """Launches a job whose attempts end as told; returns the attempts, the record (None if it failed) and events."""

    def launch(*ends, patience=Patience(), **changes):  # noqa: B008 - immutable
        attempts, events = Attempts(*ends), []
        try:
            record = recovering.launch(
                job_in(tmp_path / "run", **changes), events.append, patience, start=attempts.launch
            )
        except RunFailedError:
            record = None
        return attempts, record, events

    return launch


def test_out_of_memory_needs_less_and_keeps_what_is_trained(run):
    attempts, record, events = run((4, MEMORY), (None, None))
    before, after = (job.config for job in attempts.jobs)
    assert after != before
    kept = ("method", "lora_rank", "lora_targets", "seq_len", "quantization", "weights_dtype", "sharding", "offload")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert after.micro_batch * after.accumulation * 2 == 16
    assert attempts.jobs[1].predicted.peak_process_bytes is not None
    assert [job.resume for job in attempts.jobs] == [False, True]
    (told,) = events
    assert isinstance(told, Recovering)
    assert (told.kind, told.from_step) == ("out_of_memory", 4)
    assert {name: new for name, (_, new) in told.changed.items()} == {
        name: value for name, value in after.model_dump().items() if value != before.model_dump()[name]
    }
    assert record.recoveries[0].changed == told.changed
    assert (told.predicted, told.predicted_ranks) == (attempts.jobs[1].predicted, attempts.jobs[1].predicted_ranks)


def test_where_the_model_is_not_known_it_ends_as_it_failed(run):
    """The plan was made where the model's config.json lay."""
    elsewhere = job_in(Path("run")).config.model_copy(update={"model": "/elsewhere/config.json"})
    attempts, record, events = run((4, MEMORY), config=elsewhere)
    assert (record, len(attempts.jobs), events) == (None, 1, [])


def test_the_margin_that_was_asked_for_is_kept_free(run, monkeypatch):
    margins = []

    def asked(*_given, margin, **_named):
        margins.append(margin)

    monkeypatch.setattr(recovering, "fallback", asked)
    run((None, MEMORY), margin=0.2)
    assert margins == [0.2]


def test_without_a_checkpoint_it_begins_anew(run):
    attempts, record, _ = run((None, MEMORY), (None, None))
    assert [job.resume for job in attempts.jobs] == [False, False]
    assert attempts.replaces == ["nothing", "everything"]
    assert record.recoveries[0].from_step is None


def test_where_only_another_sharding_fits_the_checkpoint_is_set_aside(run, tmp_path, monkeypatch):
    real = recovering.fallback

    def only_other_shardings(config, told, *given, same_sharding, **named):
        if same_sharding:
            return None
        return config.model_copy(update={"sharding": "zero2"}), real(
            config, told, *given, same_sharding=False, **named
        )[1]

    monkeypatch.setattr(recovering, "fallback", only_other_shardings)
    attempts, record, _ = run((4, MEMORY), (None, None))
    assert attempts.jobs[1].config.sharding == "zero2"
    assert not attempts.jobs[1].resume
    assert record.recoveries[0].from_step is None
    kept = tmp_path / "run/checkpoints-before-1"
    assert [each.step for each in checkpoints.complete(kept)] == [4]


def test_a_host_that_lacks_memory_needs_another_plan_only_where_it_is_the_device(run):
    lacking = RunFailedError("rank 0 failed: can't allocate memory", kind="out_of_host_memory")
    attempts, record, _ = run((None, lacking), (None, None))
    assert (record.status, len(attempts.jobs)) == ("finished", 2)


def test_a_gpu_run_whose_host_lacks_memory_ends(run):
    lacking = RunFailedError("rank 0 failed: can't allocate memory", kind="out_of_host_memory")
    attempts, record, _ = run((None, lacking), device="cuda", inventory="2x8GB")
    assert (record, len(attempts.jobs)) == (None, 1)


def test_it_falls_back_no_more_often_than_allowed(run):
    attempts, record, _ = run(*[(None, MEMORY)] * 3, patience=Patience(fallbacks=2))
    assert record is None
    assert len(attempts.jobs) == 3
    needed = [job.predicted.peak_process_bytes for job in attempts.jobs[1:]]
    assert needed[1] < needed[0]


@pytest.mark.parametrize("error", [KILLED, LOST])
def test_a_dead_worker_starts_again_unchanged(run, error):
    attempts, record, events = run((4, error), (None, None))
    assert attempts.jobs[1].config == attempts.jobs[0].config
    assert attempts.jobs[1].resume
    assert (events[0].from_step, dict(events[0].changed)) == (4, {})
    assert record.status == "finished"


def test_restarts_count_between_checkpoints(run):
    ends = [(None, KILLED), (None, KILLED), (3, KILLED), (None, KILLED), (None, None)]
    attempts, record, _ = run(*ends, patience=Patience(restarts=2))
    assert record.status == "finished"
    assert len(attempts.jobs) == 5


def test_without_progress_it_ends(run):
    attempts, record, _ = run((3, KILLED), (None, KILLED), (None, KILLED), patience=Patience(restarts=2))
    assert record is None
    assert len(attempts.jobs) == 3


@pytest.mark.parametrize("kind", ["disk_full", "non_finite_loss", "error"])
def test_what_would_fail_again_is_not_tried_again(run, kind):
    attempts, record, events = run((4, RunFailedError("x", kind=kind)))
    assert (record, len(attempts.jobs), events) == (None, 1, [])


def test_bad_input_is_the_users(run):
    with pytest.raises(InputError):
        run((None, InputError("bad data")))


def test_several_machines_are_not_recovered_from_one(run):
    meeting = Rendezvous(nodes=2, min_nodes=2, node_rank=0, host="10.0.0.1", port=29500, id="run", origin="options")
    attempts, record, _ = run((4, KILLED), nproc_per_node=1, rendezvous=meeting)
    assert (record, len(attempts.jobs)) == (None, 1)


def test_what_is_recorded_survives_the_process(run, tmp_path):
    _, record, _ = run((4, KILLED), (None, None))
    (event,) = [each for each in monitor.read_all(RunDir(tmp_path / "run").metrics) if isinstance(each, Recovering)]
    assert event.message == record.recoveries[0].message
    assert replace(record, recoveries=()) != record


def test_a_plan_for_other_devices_is_not_asked(tmp_path, monkeypatch):
    """A run that was resumed elsewhere keeps the plan that it began with."""
    request = planning.plan_request("1xcpu:4GB", model=str(demo.model_path()), seq_len=128, global_batch=16)
    run = RunDir(tmp_path / "run")
    write_atomic(run.plan, to_json(planning.plan(request)))
    assert recovering._inventory(job_in(run.root), run).text == "2xcpu:4GB"
    assert recovering._inventory(job_in(run.root, inventory="1xcpu:4GB", world_size=2), run).text == "1xcpu:4GB"
