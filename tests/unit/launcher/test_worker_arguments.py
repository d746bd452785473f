"""The parts of the worker that need no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs import make_config, make_job

from ftplan.launcher.events import Noted, to_line
from ftplan.launcher.job import DataSource
from ftplan.launcher.train import __main__ as worker
from ftplan.launcher.train.arguments import sft_arguments
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.train.versions import versions


def test_nothing_the_configuration_states_is_left_to_a_default() -> None:
    config = make_config(sharding="ddp", precision="none", gradient_checkpointing=False, optimizer="adamw_8bit")
    arguments = sft_arguments(make_job(config))
    # TRL would turn the first three on if they were left out.
    assert (arguments["bf16"], arguments["fp16"], arguments["gradient_checkpointing"]) == (False, False, False)
    assert arguments["per_device_train_batch_size"] == 4
    assert arguments["gradient_accumulation_steps"] == 2
    assert (arguments["max_length"], arguments["packing"], arguments["optim"]) == (128, False, "adamw_8bit")
    assert arguments["use_cpu"] is True
    assert arguments["deepspeed"] is None
    assert "fsdp" not in arguments


@pytest.mark.parametrize(("precision", "expected"), [("bf16", (True, False)), ("fp16", (False, True))])
def test_precision_is_the_autocast_dtype(precision: str, expected: tuple[bool, bool]) -> None:
    arguments = sft_arguments(make_job(make_config(sharding="ddp", precision=precision)))
    assert (arguments["bf16"], arguments["fp16"]) == expected


def test_the_length_is_steps_or_epochs() -> None:
    assert sft_arguments(make_job())["max_steps"] == 60
    arguments = sft_arguments(make_job(max_steps=None, epochs=1.5))
    assert arguments["num_train_epochs"] == 1.5
    assert "max_steps" not in arguments


def test_the_trainer_deletes_no_checkpoint_itself() -> None:
    assert sft_arguments(make_job(save_total_limit=1))["save_total_limit"] is None


def test_held_out_rows_are_evaluated_whenever_a_checkpoint_is_saved() -> None:
    assert sft_arguments(make_job())["eval_strategy"] == "no"
    arguments = sft_arguments(make_job(data=DataSource(paths=("a.json",), eval_fraction=0.1), save_steps=7))
    assert (arguments["eval_strategy"], arguments["eval_steps"]) == ("steps", 7)


def test_random_rows_are_taken_in_order_and_real_ones_are_not() -> None:
    assert sft_arguments(make_job(data=DataSource(synthetic=True)))["train_sampling_strategy"] == "sequential"
    arguments = sft_arguments(make_job())
    assert "train_sampling_strategy" not in arguments
    assert arguments["dataset_kwargs"] == {"skip_prepare_dataset": True}


def test_sharding_reaches_the_trainer() -> None:
    arguments = sft_arguments(make_job(make_config(sharding="fsdp2"), device="cuda"))
    assert arguments["fsdp"] is True
    assert arguments["fsdp_config"]["version"] == 2
    arguments = sft_arguments(make_job(make_config(sharding="zero3"), device="cuda"))
    assert arguments["deepspeed"]["zero_optimization"]["stage"] == 3


def test_hybrid_sharding_shards_inside_a_machine() -> None:
    pytest.importorskip("accelerate")
    config = make_config(sharding="hsdp", accumulation=1, micro_batch=1)
    arguments = sft_arguments(make_job(config, device="cuda", world_size=16, nproc_per_node=8))
    mesh = arguments["parallelism_config"]
    assert (mesh.dp_replicate_size, mesh.dp_shard_size, mesh.total_size) == (2, 8, 16)
    assert mesh._get_mesh() == (("dp_replicate", "dp_shard"), (2, 8))
    assert arguments["fsdp_config"]["reshard_after_forward"] is True
    assert "parallelism_config" not in sft_arguments(make_job(make_config(sharding="fsdp2"), device="cuda"))


def test_collectives_wait_as_long_as_the_job_says() -> None:
    assert sft_arguments(make_job(timeout_seconds=4000))["ddp_timeout"] == 4000


def test_offloaded_gradients_have_collectives_on_the_host() -> None:
    offloaded = make_job(make_config(sharding="fsdp2", offload="optimizer+params"), device="cuda")
    assert sft_arguments(offloaded)["ddp_backend"] == "cpu:gloo,cuda:nccl"
    assert "ddp_backend" not in sft_arguments(make_job(make_config(sharding="fsdp2"), device="cuda"))


def test_reports_of_several_ranks_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    first, second = Reporter(path), Reporter(path)
    first.report(Noted("one"))
    second.report(Noted("two"))
    first.report(Noted("three"))
    assert path.read_bytes() == b"".join(to_line(Noted(told)) for told in ("one", "two", "three"))


def test_an_attempt_reports_from_a_line_of_its_own_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, file = make_job(run_dir=str(tmp_path)), tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    job.folder.metrics.write_bytes(b'{"event": "not')
    training = SimpleNamespace(train=lambda job, guard, reporter: reporter.report(Noted("one")))
    monkeypatch.setitem(sys.modules, "ftplan.launcher.train.run", training)
    monkeypatch.setattr(worker, "Guard", lambda: SimpleNamespace(start=lambda: None))
    assert worker.main([str(file)]) == 0
    assert job.folder.metrics.read_bytes() == b'{"event": "not\n' + to_line(Noted("one"))


def test_versions_name_python() -> None:
    assert "python" in versions()
