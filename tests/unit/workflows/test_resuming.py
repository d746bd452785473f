from __future__ import annotations

from pathlib import Path

import pytest

from ftplan import cli
from ftplan.errors import DoesNotFitError, InputError
from ftplan.files import write_atomic
from ftplan.launcher import checkpoints, demo, records
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.launcher.summary import summarise
from ftplan.spec import RunConfig
from ftplan.workflows import resuming, running
from ftplan.workflows.nodes import NodeOptions
from ftplan.workflows.running import demo_plan


@pytest.fixture
def stopped(tmp_path: Path):
    """Makes the folder of a run on two devices, with 12 samples a step."""

    def make(sharding: str = "ddp", gpus: str = "2xcpu:4GB", **config) -> Path:
        run = RunDir(tmp_path / "run")
        job = TrainJob(
            run_id="run",
            run_dir=str(run.root),
            config=RunConfig(
                **{"model": str(demo.model_path()), "seq_len": 64, "micro_batch": 2, "accumulation": 3}
                | {"sharding": sharding}
                | config
            ),
            inventory=gpus,
            global_batch=12,
            world_size=2,
            nproc_per_node=2,
            device="cpu" if "cpu" in gpus else "cuda",
            model=demo.model(),
            tokenizer=demo.tokenizer(),
            data=demo.data(),
            max_steps=8,
        )
        run.checkpoints.mkdir(parents=True)
        run.job.write_text(job.model_dump_json())
        return run.root

    return make


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "accumulation"), [(1, 2, 6), (2, 2, 3), (3, 2, 2), (4, 1, 3), (6, 2, 1), (12, 1, 1)]
)
def test_the_global_batch_is_split_exactly(stopped, ranks, micro_batch, accumulation):
    job = resuming.resumed_on(stopped(), f"{ranks}xcpu:4GB")
    assert (job.config.micro_batch, job.config.accumulation, job.world_size) == (micro_batch, accumulation, ranks)
    assert (job.global_batch, job.nproc_per_node, job.resume) == (12, ranks, True)
    assert job.config.sharding == ("ddp" if ranks > 1 else "none")
    assert job.inventory == f"{ranks}xcpu:4GB"
    assert job.max_steps == 8


@pytest.mark.parametrize("sharding", ["fsdp2", "fsdp2-grad-op", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("gpus", ["1xcpu:4GB", "3xcpu:4GB", "1x24GB"])
def test_what_is_sharded_stays_sharded(stopped, sharding, gpus):
    assert resuming.resumed_on(stopped(sharding), gpus).config.sharding == sharding


def test_hsdp_becomes_fsdp2_on_one_machine(stopped):
    assert resuming.resumed_on(stopped("hsdp", "2x2x24GB"), "2x24GB").config.sharding == "fsdp2"


@pytest.mark.parametrize(("ranks", "nearest"), [(5, "4 or 6"), (7, "6 or 12"), (24, "12 devices")])
def test_a_batch_that_does_not_split_names_the_nearest_numbers_of_devices(stopped, ranks, nearest):
    with pytest.raises(InputError, match=f"global batch of 12 does not split evenly over {ranks} devices") as caught:
        resuming.resumed_on(stopped(), f"{ranks}xcpu:4GB")
    assert nearest in caught.value.hint
    assert caught.value.field == "gpus"


def test_a_smaller_micro_batch_is_taken_where_the_former_does_not_fit(stopped):
    folder = stopped(seq_len=1024, micro_batch=6, accumulation=1, gradient_checkpointing=False)
    assert resuming.resumed_on(folder, "1xcpu:1GB").config.micro_batch == 6
    small = resuming.resumed_on(folder, "1xcpu:700MB").config
    assert (small.micro_batch, small.accumulation) == (2, 6)
    with pytest.raises(DoesNotFitError, match="not even with a micro-batch of 1"):
        resuming.resumed_on(folder, "1xcpu:600MB")


def test_what_cannot_run_there_is_refused(stopped):
    folder = stopped("ddp", "2x24GB", weights_dtype="bf16", precision="bf16")
    with pytest.raises(InputError, match="cannot go on there"):
        resuming.resumed_on(folder, "2xT4")


def test_the_command_takes_devices_with_resume(stopped, capsys):
    folder = stopped("zero2")
    assert cli.run(["run", "--resume", "--run-dir", str(folder), "--gpus", "3xcpu:4GB", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "--nproc_per_node 3" in shown
    assert checkpoints.latest_complete(RunDir(folder).checkpoints) is None


SECOND = NodeOptions(nodes="2", node_rank=1, endpoint="127.0.0.1:4000")


def settings(tmp_path, **changes):
    return running.demo_settings(running.RunSettings(run_dir=tmp_path / "run", **changes))


def leave(run, status, *, step=None):
    """Leave a run in this state, with a checkpoint or none."""
    records.write_state(run, status, 1)
    if step is not None:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        checkpoints.seal(folder, step=step, world_size=2, global_batch=demo.GLOBAL_BATCH)


def test_a_requeued_run_goes_on_begins_anew_or_is_done(tmp_path):
    ready = running.ready(demo_plan(), settings(tmp_path))
    run = RunDir(tmp_path / "run")
    assert resuming.going_on(run.root, NodeOptions()) == (run, None)
    write_atomic(run.job, ready.job.model_dump_json())
    leave(run, "failed")
    assert resuming.going_on(run.root, NodeOptions()) == (run, None)
    leave(run, "failed", step=20)
    assert resuming.going_on(run.root, NodeOptions()) == (run, ready.job.model_copy(update={"resume": True}))
    record = summarise(ready.job, "finished", [], [], 1.0)
    records.write_record(run, record)
    leave(run, "finished")
    assert resuming.going_on(run.root, NodeOptions()) == (run, record)


def test_a_run_that_goes_on_needs_its_folder(tmp_path, capsys):
    assert cli.run(["run", "--demo", "--resume-or-start"]) == 2
    assert "--run-dir" in capsys.readouterr().err


def test_a_run_that_goes_on_is_not_planned_again(tmp_path, capsys, monkeypatch):
    ready = running.ready(demo_plan(), settings(tmp_path))
    run = RunDir(tmp_path / "run")
    write_atomic(run.job, ready.job.model_dump_json())
    leave(run, "failed", step=20)
    monkeypatch.setattr(running, "demo_plan", lambda gpus: pytest.fail("planned"))
    assert cli.run(["run", "--demo", "--run-dir", str(run.root), "--resume-or-start", "--dry-run"]) == 0
    assert "with the options it was started with" in capsys.readouterr().err


def test_resume_or_start_of_a_finished_run_shows_its_record(tmp_path, capsys):
    ready = running.ready(demo_plan(), settings(tmp_path))
    run = RunDir(tmp_path / "run")
    records.write_record(run, summarise(ready.job, "finished", [], [], 1.0))
    leave(run, "finished")
    words = ["run", "--demo", "--run-dir", str(tmp_path / "run"), "--resume-or-start", "--dry-run"]
    assert cli.run(words) == 0
    assert "finished: 0 steps" in capsys.readouterr().out


def test_a_second_node_follows_the_first(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    assert ready.job.folder.home == tmp_path / "run" / "nodes" / "1"
    assert (ready.job.run_id, ready.job.nodes, ready.job.nproc_per_node) == ("run", 2, 1)
    leave(RunDir(tmp_path / "run"), "failed", step=20)
    assert resuming.going_on(tmp_path / "run", SECOND) == (RunDir(tmp_path / "run"), None)


def test_nodes_that_resume_may_meet_elsewhere(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    write_atomic(tmp_path / "run" / "job.json", ready.job.model_dump_json())
    moved = NodeOptions(nodes="2", node_rank=0, endpoint="127.0.0.1:4001")
    resumed = resuming.resumed(tmp_path / "run", moved)
    assert resumed.resume
    assert resumed.rendezvous is not None
    assert (resumed.rendezvous.node_rank, resumed.rendezvous.port, resumed.rendezvous.id) == (0, 4001, "run")
    assert resuming.resumed(tmp_path / "run").rendezvous == ready.job.rendezvous


def test_a_run_of_two_machines_goes_on_with_one(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    write_atomic(tmp_path / "run" / "job.json", ready.job.model_dump_json())
    moved = resuming.resumed_on(tmp_path / "run", "2xcpu:4GB")
    assert (moved.rendezvous, moved.nproc_per_node) == (None, 2)
    assert resuming.resumed(tmp_path / "run", NodeOptions(nodes="1")).rendezvous is None


def test_a_run_of_one_machine_goes_on_with_two(stopped):
    moved = resuming.resumed_on(stopped(), "2x1xcpu:4GB", SECOND)
    assert moved.rendezvous is not None
    assert (moved.nodes, moved.rendezvous.node_rank, moved.nproc_per_node) == (2, 1, 1)


def test_a_second_node_with_a_disk_of_its_own_resumes_its_own_part(tmp_path):
    ready = running.ready(demo_plan("2x1xcpu"), settings(tmp_path, nodes=SECOND))
    write_atomic(ready.job.folder.job, ready.job.model_dump_json())
    resumed = resuming.resumed(tmp_path / "run", SECOND)
    assert resumed == ready.job.model_copy(update={"resume": True})
