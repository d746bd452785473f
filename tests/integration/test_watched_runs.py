"""What a run tells while it runs: two runs of the demo on two processes, each with an instrument."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ftplan.launcher import demo, engine, monitor, records
from ftplan.launcher.events import FlopsCounted, Profiled, RankMemory, Stepped, Warned
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.results import RunRecord
from ftplan.workflows import planning, running

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

PEAK = 1e11
TOO_LITTLE = 2**20
"""Bytes that no Python process gets by with."""


def watched_job(run_dir: Path, **changes: Any) -> TrainJob:
    """The demo as it is planned, with a peak, and a prediction for its second rank that is far too low."""
    pins = {"micro_batch": 4, "gradient_checkpointing": False}
    request = planning.plan_request(
        "2xcpu:4GB", model=str(demo.model_path()), seq_len=demo.SEQ_LEN, global_batch=demo.GLOBAL_BATCH, pins=pins
    )
    given = {"max_steps": 6, "save_steps": 3}
    settings = running.demo_settings(running.RunSettings(run_dir=run_dir, hyperparameters=given))
    ready = running.ready(planning.plan(request), settings)
    first, second = ready.job.predicted_ranks
    ranks = (first, RankMemory(second.rank, None, None, TOO_LITTLE, None))
    update = {"predicted_ranks": ranks, "peak_flops_per_second": PEAK, "logging_steps": 2, **changes}
    return ready.job.model_copy(update=update)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, RunRecord]:
    job = watched_job(tmp_path_factory.mktemp("watched") / "counted", count_flops=True)
    return job, engine.launch(job)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, RunRecord]:
    job = watched_job(tmp_path_factory.mktemp("watched") / "profiled", profile=True)
    return job, engine.launch(job)


def steps(job: TrainJob) -> list[Stepped]:
    return [event for event in monitor.read_all(RunDir(Path(job.run_dir)).metrics) if isinstance(event, Stepped)]


def test_every_line_is_complete_and_every_checkpoints_step_has_one(counted: tuple[TrainJob, RunRecord]) -> None:
    job, record = counted
    logged = steps(job)
    assert [event.step for event in logged] == [1, 2, 3, 4, 6]
    for event in logged:
        assert event.samples_seen == event.step * job.global_batch
        assert None not in (event.grad_norm, event.mfu, event.elapsed_seconds, event.eta_seconds, event.tokens_seen)
        assert event.mfu is not None
        per_token = event.mfu * PEAK / event.tokens_per_second
        # Rows are shorter than planned, and longer than nothing.
        assert job.model_flops_per_token is not None
        assert job.score_flops_per_token is not None
        assert job.model_flops_per_token < per_token
        assert per_token < job.model_flops_per_token + job.score_flops_per_token * job.config.seq_len
    assert logged[-1].eta_seconds == 0
    assert logged[0].elapsed_seconds < logged[-1].elapsed_seconds
    assert record.measured.mfu == pytest.approx(sorted(event.mfu for event in logged[2:])[1])


def test_a_checkpoint_holds_the_tokens_seen(counted: tuple[TrainJob, RunRecord]) -> None:
    job, _ = counted
    state = RunDir(Path(job.run_dir)).checkpoints / "checkpoint-3" / "trainer_state.json"
    assert json.loads(state.read_text())["num_input_tokens_seen"] == steps(job)[2].tokens_seen


def test_memory_above_its_prediction_is_told_once_and_recorded(counted: tuple[TrainJob, RunRecord]) -> None:
    job, record = counted
    events = monitor.read_all(RunDir(Path(job.run_dir)).metrics)
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert (warned.rank, warned.figure, warned.step, warned.predicted_bytes) == (1, "process", 1, TOO_LITTLE)
    assert [(one.rank, one.measured_bytes) for one in record.warnings] == [(1, warned.measured_bytes)]
    assert records.read_record(RunDir(Path(job.run_dir))) == record


def test_counted_flops_are_those_of_the_model(counted: tuple[TrainJob, RunRecord]) -> None:
    job, record = counted
    assert record.flops is not None
    assert record.flops.step == 3
    assert record.flops.model is not None
    # Whole score matrices, and the flash kernel's second look at them, less the gradients of the first layer's inputs.
    assert record.flops.counted == pytest.approx(record.flops.model, rel=0.03)
    assert sum(record.flops.by_operation.values()) == record.flops.counted
    assert "aten.mm" in record.flops.by_operation
    (event,) = (one for one in monitor.read_all(RunDir(Path(job.run_dir)).metrics) if isinstance(one, FlopsCounted))
    assert event.tokens == record.flops.tokens


def test_tensorboard_has_every_figure(counted: tuple[TrainJob, RunRecord]) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job, _ = counted
    read = accumulators.EventAccumulator(str(RunDir(Path(job.run_dir)).tensorboard))
    read.Reload()
    names = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "tokens_seen"}
    names |= {f"memory_process_bytes/rank_{rank}" for rank in (0, 1)}
    assert {f"train/{name}" for name in names} <= set(read.Tags()["scalars"])
    shown = [(point.step, point.value) for point in read.Scalars("train/mfu")]
    assert shown == [(event.step, pytest.approx(event.mfu)) for event in steps(job)]


def test_a_profile_is_a_trace_of_every_rank(profiled: tuple[TrainJob, RunRecord]) -> None:
    job, record = profiled
    run = RunDir(Path(job.run_dir))
    names = [f"from-step-3-rank-{rank}.trace.json.gz" for rank in (0, 1)]
    assert sorted(path.name for path in run.profile.iterdir()) == names
    assert record.profiles == tuple(str(run.profile / name) for name in names)
    (event,) = (one for one in monitor.read_all(run.metrics) if isinstance(one, Profiled))
    assert (event.first_step, event.last_step) == (3, 5)
    trace = json.loads(gzip.decompress((run.profile / names[1]).read_bytes()))
    marked = {one["name"] for one in trace["traceEvents"] if one["name"].startswith("ProfilerStep#")}
    assert marked == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}
    assert any(one["name"] == "aten::mm" for one in trace["traceEvents"])


def test_instruments_change_no_result(
    counted: tuple[TrainJob, RunRecord], profiled: tuple[TrainJob, RunRecord]
) -> None:
    one, other = (
        [(event.step, event.loss, event.grad_norm, event.tokens_seen) for event in steps(job)]
        for job, _ in (counted, profiled)
    )
    assert one == other
    assert len(one) == 5
