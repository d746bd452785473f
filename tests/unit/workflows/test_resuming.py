from __future__ import annotations

from pathlib import Path

import pytest

from ftplan import cli
from ftplan.errors import DoesNotFitError, InputError
from ftplan.launcher import checkpoints, demo
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.spec import RunConfig
from ftplan.workflows import resuming


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
