"""What a run survives: faults injected into real training of the demo model, and what each of them cost.

`docs/faults.md` is the table; `tests/unit/test_fault_table.py` holds its rows to these tests.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from run_facts import losses, may_administer

from ftplan.errors import RunFailedError
from ftplan.launcher import checkpoints, demo, engine, records
from ftplan.launcher.events import Event, Recovering, Saved, Started
from ftplan.launcher.job import TrainJob
from ftplan.launcher.records import RunDir
from ftplan.results import RunRecord
from ftplan.spec import RunConfig
from ftplan.workflows import recovering
from ftplan.workflows.recovering import Patience

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

STEPS = 8
SAVED_EVERY = 3
INJECTED = Path(__file__).parent / "injected"


def demo_job(run_dir: Path, ranks: int = 1) -> TrainJob:
    config = RunConfig(
        model=str(demo.model_path()),
        seq_len=demo.SEQ_LEN,
        stack="trl",
        gradient_checkpointing=False,
        micro_batch=8,
        accumulation=2 // ranks,
        weights_dtype="fp32",
        precision="none",
        sharding="ddp" if ranks > 1 else "none",
    )
    lengths = {"max_steps": STEPS, "save_steps": SAVED_EVERY}
    return TrainJob(
        run_id=run_dir.name,
        run_dir=str(run_dir),
        config=config,
        inventory=f"{ranks}xcpu:4GB",
        global_batch=demo.GLOBAL_BATCH,
        world_size=ranks,
        nproc_per_node=ranks,
        device="cpu",
        model=demo.model(),
        tokenizer=demo.tokenizer(),
        data=demo.data(),
        **{**demo.LEARNING, **lengths},
    )


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Has workers that start from now on make a fault (`injected/sitecustomize.py`)."""

    def set_fault(fault: str, *, once: bool = False) -> None:
        monkeypatch.setenv("PYTHONPATH", f"{INJECTED}:{Path.cwd()}")
        monkeypatch.setenv("FTPLAN_FAULT", fault)
        if once:
            monkeypatch.setenv("FTPLAN_FAULT_ONCE", str(tmp_path / "made"))

    return set_fault


def launch(job: TrainJob, patience: Patience = Patience()) -> tuple[RunRecord, list[Event]]:  # noqa: B008 - immutable
    events: list[Event] = []
    return recovering.launch(job, events.append, patience), events


def resume(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.delenv("FTPLAN_FAULT", raising=False)
    return recovering.launch(engine.resume_job(RunDir(run_dir)), lambda event: None)


def saved_steps(run_dir: Path) -> list[int]:
    return sorted(each.step for each in checkpoints.complete(RunDir(run_dir).checkpoints))


def recoveries(events: list[Event]) -> list[Recovering]:
    return [event for event in events if isinstance(event, Recovering)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    record, events = launch(demo_job(folder))
    assert (record.status, record.steps, record.recoveries) == ("finished", STEPS, ())
    assert [event.step for event in events if isinstance(event, Saved)] == [3, 6, 8]
    return losses(folder)


def test_out_of_memory_goes_on_from_the_checkpoint_with_the_next_plan(tmp_path, inject, reference):
    inject("memory:5")
    job = demo_job(tmp_path / "run")
    record, events = launch(job)
    assert (record.status, record.steps) == ("finished", STEPS)
    (recovery,) = record.recoveries
    assert (recovery.kind, recovery.from_step) == ("out_of_memory", SAVED_EVERY)
    assert dict(recovery.changed) == {"micro_batch": (8, 4), "accumulation": (2, 4)}
    assert record.config.micro_batch * record.config.accumulation == demo.GLOBAL_BATCH
    # The same samples in the same order, summed in other parts.
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-4)
    assert len({event.samples for event in events if isinstance(event, Started)}) == 1
    assert records.read_record(RunDir(tmp_path / "run")) == record


def test_out_of_memory_before_a_checkpoint_begins_again_with_the_next_plan(tmp_path, inject, reference):
    inject("memory:1")
    record, _ = launch(demo_job(tmp_path / "run"))
    assert [each.from_step for each in record.recoveries] == [None]
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-4)


def test_out_of_memory_without_fallbacks_fails_and_can_be_resumed(tmp_path, inject, monkeypatch, reference):
    inject("memory:5")
    with pytest.raises(RunFailedError, match="out of memory") as failure:
        launch(demo_job(tmp_path / "run"), Patience(fallbacks=0))
    assert "step 3 is saved" in failure.value.hint
    assert resume(tmp_path / "run", monkeypatch).resumed_from_step == SAVED_EVERY
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_worker_that_dies_is_started_again(tmp_path, inject, reference, name):
    inject(f"{name}:5", once=True)
    record, events = launch(demo_job(tmp_path / "run", ranks=2))
    assert record.status == "finished"
    (recovery,) = recoveries(events)
    assert (recovery.kind, recovery.from_step, dict(recovery.changed)) == ("killed", SAVED_EVERY, {})
    assert name in recovery.message
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-4)


def test_a_worker_that_dies_again_and_again_ends_the_run_resumable(tmp_path, inject, monkeypatch, reference):
    inject("SIGKILL:5")
    with pytest.raises(RunFailedError, match="SIGKILL"):
        launch(demo_job(tmp_path / "run"), Patience(restarts=1))
    state = records.read_state(RunDir(tmp_path / "run"))
    assert state is not None
    assert (state.status, state.attempt) == ("failed", 2)
    assert resume(tmp_path / "run", monkeypatch).status == "finished"
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-6)


def test_a_preempted_worker_saves_and_stops(tmp_path, inject, monkeypatch, reference):
    inject("SIGTERM:5", once=True)
    record, _ = launch(demo_job(tmp_path / "run"))
    assert (record.status, saved_steps(tmp_path / "run")[-1]) == ("interrupted", 5)
    assert resume(tmp_path / "run", monkeypatch).resumed_from_step == 5
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-6)


def test_a_kill_between_save_and_seal_loses_that_checkpoint_only(tmp_path, inject, monkeypatch, reference):
    inject("unsealed:6")
    with pytest.raises(RunFailedError):
        launch(demo_job(tmp_path / "run"), Patience(restarts=0))
    assert (tmp_path / "run/checkpoints/checkpoint-6").exists()
    assert saved_steps(tmp_path / "run") == [3]
    assert resume(tmp_path / "run", monkeypatch).resumed_from_step == 3
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-6)


def test_a_loss_that_is_no_number_leaves_the_checkpoint_before_it(tmp_path, inject, monkeypatch, reference):
    inject("nan:5")
    with pytest.raises(RunFailedError, match="loss is nan at step 5"):
        launch(demo_job(tmp_path / "run"))
    assert saved_steps(tmp_path / "run") == [3]
    assert resume(tmp_path / "run", monkeypatch).status == "finished"
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-6)


def test_ruined_weights_are_never_sealed(tmp_path, inject):
    job = demo_job(tmp_path / "run").model_copy(update={"logging_steps": 100})
    inject("weights:6")
    with pytest.raises(RunFailedError, match="weights are no longer numbers after step 6"):
        launch(job)
    assert saved_steps(tmp_path / "run") == [3]


def test_a_disk_that_is_full_at_a_save_keeps_the_checkpoint_before_it(tmp_path, inject, monkeypatch, reference):
    inject("disk:6")
    with pytest.raises(RunFailedError, match="No space left") as failure:
        launch(demo_job(tmp_path / "run"))
    assert (failure.value.kind, failure.value.exit_code) == ("disk_full", 3)
    assert "free space" in failure.value.hint
    assert not (tmp_path / "run/checkpoints/checkpoint-6").exists(), "what was cut short takes room"
    assert resume(tmp_path / "run", monkeypatch).resumed_from_step == 3
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-6)


def test_a_bug_is_not_tried_again(tmp_path, inject):
    inject("bug:2")
    with pytest.raises(RunFailedError, match="a bug of the model's code") as failure:
        launch(demo_job(tmp_path / "run"))
    assert failure.value.kind == "error"
    state = records.read_state(RunDir(tmp_path / "run"))
    assert state is not None
    assert (state.status, state.attempt) == ("failed", 1)


def test_a_rank_that_hangs_is_given_up_and_started_again(tmp_path, inject, reference):
    inject("hang:5:1", once=True)
    job = demo_job(tmp_path / "run", ranks=2).model_copy(update={"timeout_seconds": 40})
    # On a busy machine ranks may begin so far apart that one is given up before.
    record, _ = launch(job, Patience(restarts=4))
    assert record.status == "finished"
    assert ("lost_rank", SAVED_EVERY) in [(each.kind, each.from_step) for each in record.recoveries]
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=1e-4)


def test_a_kill_while_the_result_is_written_leaves_none_and_resuming_writes_it(tmp_path, inject, monkeypatch):
    inject("export:0")
    with pytest.raises(RunFailedError):
        launch(demo_job(tmp_path / "run"), Patience(restarts=0))
    assert not (tmp_path / "run/final").exists()
    assert saved_steps(tmp_path / "run")[-1] == STEPS
    record = resume(tmp_path / "run", monkeypatch)
    assert (record.status, record.resumed_from_step) == ("finished", STEPS)
    assert (tmp_path / "run/final/adapter_model.safetensors").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk that holds one checkpoint of the demo and not two."""
    if not may_administer():
        pytest.skip("mounting a small disk needs CAP_SYS_ADMIN; an injected full disk is tested without")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_really_is_full_ends_the_run_resumable(small_disk, monkeypatch):
    job = demo_job(small_disk / "run").model_copy(update={"tensorboard": False, "data_cache": None})
    with pytest.raises(RunFailedError) as failure:
        launch(job)
    assert failure.value.kind == "disk_full"
    run = RunDir(small_disk / "run")
    assert saved_steps(run.root), "the first checkpoint had room"
    state = records.read_state(run)
    assert state is not None
    assert state.status == "failed"
