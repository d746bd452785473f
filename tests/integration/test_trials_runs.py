"""Trials of the demo model in real processes, on this machine's CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from run_facts import wait_until

from ftplan.launcher import demo, trials
from ftplan.launcher.trials import Trial, Trialled, TrialsJob, TrialsSetup, run_trials, training_job
from ftplan.spec import RunConfig

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

SETUP = TrialsSetup(architecture=str(demo.model_path()), world_size=1, device="cpu", warmup_steps=1, steps=2)
FP32 = {"weights_dtype": "fp32", "precision": "none", "gradient_checkpointing": False, "stack": "trl"}
BF16 = {"weights_dtype": "bf16", "precision": "bf16"}


def make_trial(name: str, **config: Any) -> Trial:
    given = FP32 | {"seq_len": 64, "micro_batch": 2} | config
    return Trial(id=name, config=RunConfig(model="demo", **given))


def trialled(folder: Path, given: list[Trial], setup: TrialsSetup = SETUP) -> dict[str, Trialled]:
    told: list[Trialled] = []
    run_trials(given, setup, folder=folder, deadline=time.monotonic() + 100, on_result=told.append)
    assert [each.trial for each in told] == [trial.id for trial in given]
    return {each.trial: each for each in told}


def test_one_process_measures_them_all(tmp_path: Path) -> None:
    given = [
        make_trial("lora", accumulation=16),
        make_trial("bad", optimizer="nonsense"),
        make_trial("full", method="full", loss_path="full", padding=True, gradient_checkpointing=True, **BF16),
        make_trial("packed", packing=True, seq_len=63, accumulation=2),
    ]
    if find_spec("bitsandbytes"):
        given.append(make_trial("qlora", method="qlora", lora_targets="qv", **BF16))
    told = trialled(tmp_path, given)
    failed = [name for name, each in told.items() if each.status != "measured"]
    assert failed == ["bad"]
    assert "nonsense" in told["bad"].message
    assert [trial["id"] for trial in json.loads((tmp_path / trials.JOB).read_text())["trials"]] == list(told)
    assert (told["full"].peak_allocated_bytes, told["full"].process_bytes) == (None, None)
    assert not list(tmp_path.rglob("*.safetensors"))
    counts_what_was_left_out(told["lora"])
    assert told["full"].micro_batch_seconds is None
    needs_no_process(tmp_path, told)


def counts_what_was_left_out(told: Trialled) -> None:
    """Three of 16 micro-batches are run."""
    assert told.step_seconds is not None
    assert told.micro_batch_seconds is not None
    assert told.tokens_per_second == pytest.approx(2 * 16 * 64 / told.step_seconds)
    assert told.step_seconds > 15 * told.micro_batch_seconds * 0.5


def needs_no_process(folder: Path, told: dict[str, Trialled]) -> None:
    """What was measured is handed on as it was."""
    before = (folder / trials.LOG).stat().st_size
    again = trialled(folder, [make_trial("full"), make_trial("lora")])
    assert again == {name: told[name] for name in ("full", "lora")}
    assert (folder / trials.LOG).stat().st_size == before


def test_two_ranks_go_on_together_from_trial_to_trial(tmp_path: Path) -> None:
    setup = SETUP.model_copy(update={"world_size": 2})
    told = trialled(tmp_path, [make_trial(name, sharding="ddp", accumulation=3) for name in ("first", "second")], setup)
    for each in told.values():
        assert each.status == "measured"
        assert each.step_seconds is not None
        assert each.tokens_per_second == pytest.approx(2 * 2 * 3 * 64 / each.step_seconds)


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ftplan.launcher.trials import *\n"
        "setup, trial = TrialsSetup.model_validate_json(sys.argv[1]), Trial.model_validate_json(sys.argv[2])\n"
        "run_trials([trial], setup, folder=Path(sys.argv[3]), deadline=time.monotonic() + 60, on_result=print)"
    )
    setup = SETUP.model_copy(update={"steps": 100_000})
    arguments = [setup.model_dump_json(), make_trial("long").model_dump_json(), str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", script, *arguments]) as parent:
        begun = wait_until(lambda: b"ftplan trial: long" in read(tmp_path / trials.LOG), 60)
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        workers = [pid for pid in pids if mentions(pid, tmp_path)]
        os.kill(parent.pid, signal.SIGKILL)
    assert begun
    assert len(workers) >= 2
    assert wait_until(lambda: not any(mentions(pid, tmp_path) for pid in workers), 20)


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def mentions(pid: int, folder: Path) -> bool:
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def as_job(trial: Trial, folder: Path) -> Any:
    job = TrialsJob(**SETUP.model_dump(), trials=(trial,), results=str(folder / "trials.jsonl"))
    return training_job(job, trial)


def tensors(model: Any) -> dict[str, tuple[Any, ...]]:
    """Shape, dtype and training of what a model holds."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tuple(each.shape), each.dtype, each.requires_grad) for name, each in named}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("changes", [{"method": "full"}, {"method": "qlora", **BF16}])
def test_a_model_of_random_weights_is_the_one_that_a_run_loads(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from ftplan.launcher.train.control import Control
    from ftplan.launcher.train.handing_on import build_model
    from ftplan.launcher.train.model import adapted
    from ftplan.launcher.train.random_model import random_model

    training = as_job(make_trial("a", **changes), tmp_path)
    drawn = training.model_copy(update={"model": training.model.model_copy(update={"kind": "config"})})
    loaded = build_model(drawn, Control())
    made = adapted(random_model(training, torch.device("cpu")), training)
    assert tensors(made) == tensors(loaded)
    assert {name: type(layer) for name, layer in made.named_modules()} == {
        name: type(layer) for name, layer in loaded.named_modules()
    }
    for name, buffer in made.named_buffers():
        assert torch.equal(buffer, loaded.get_buffer(name)), name
    for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method"):
        assert getattr(made, name, None) == getattr(loaded, name, None)
    ids = torch.arange(16).view(1, 16)
    with torch.no_grad():
        assert made(input_ids=ids).logits.isfinite().all()


def test_every_batch_of_padded_rows_carries_a_mask(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from ftplan.launcher.train.random_rows import random_rows

    rows = random_rows(as_job(make_trial("a", padding=True, accumulation=2), tmp_path), 100)
    assert len(rows) == 3 * 2 * 2
    assert [len(row) for row in rows["input_ids"]] == [64, 60] * 6
    assert max(map(max, rows["input_ids"])) < 100
    rows = random_rows(as_job(make_trial("a", packing=True, seq_len=63), tmp_path), 100)
    assert {len(row) for row in rows["input_ids"]} == {63}
    assert list(rows["seq_lengths"]) == [[31, 32]] * len(rows)


def test_the_time_of_a_step_that_was_cut() -> None:
    stopwatch = pytest.importorskip("ftplan.launcher.train.stopwatch")
    steps = [stopwatch.TimedStep((1.0, 3.0), 5.0), stopwatch.TimedStep((2.0, 2.0), 4.0)]
    assert stopwatch.timing_of(steps, 3).step_seconds == 8.5
    assert stopwatch.timing_of(steps, 10) == stopwatch.Timing(9 * 2.0 + 4.5, 2.0)
    assert stopwatch.timing_of([stopwatch.TimedStep((), 4.0)], 1) == stopwatch.Timing(4.0, None)


def test_a_cap_leaves_the_allocator_what_others_leave_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pytest.importorskip("torch").cuda
    from ftplan.launcher.train import card

    shares: list[float] = []
    # Of 80 bytes 30 are in use, and the allocator holds 20 of them.
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "mem_get_info", lambda: (50, 80))
    monkeypatch.setattr(cuda, "memory_reserved", lambda: 20)
    monkeypatch.setattr(cuda, "set_per_process_memory_fraction", shares.append)
    for cap_bytes in (50, 5, 100, None):
        card.cap(cap_bytes)
    assert shares == [0.5, 0.0, 1.0, 1.0]


def test_memory_that_was_lacking_is_told_apart() -> None:
    torch = pytest.importorskip("torch")
    from ftplan.launcher.train.rehearsal import _told

    assert _told(torch.OutOfMemoryError("no"))[0] == "out_of_memory"
    assert _told(RuntimeError("CUDA error: out of memory"))[0] == "out_of_memory"
    status, message = _told(RuntimeError("shapes differ\n\nhere"))
    assert (status, message) == ("failed", "RuntimeError: shapes differ here")
