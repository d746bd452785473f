"""Every way of spreading a training over processes: trained, killed, resumed, and compared with one that was not.

One run of full fine-tuning and one of LoRA, on two processes with DDP, are what all others are compared with: on CPUs
in fp32 every kind of sharding gives the same losses. A step takes 12 samples: they split over one, two and three ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from run_facts import losses, runs, wait_until

from ftplan.errors import RunFailedError
from ftplan.launcher import checkpoints, demo, engine, monitor
from ftplan.launcher.events import Event, Started, Stepped
from ftplan.launcher.job import Source, TrainJob
from ftplan.launcher.records import RunDir
from ftplan.results import RunRecord
from ftplan.spec import RunConfig
from ftplan.workflows import resuming

pytestmark = pytest.mark.integration
pytest.importorskip("trl")
pytest.importorskip("deepspeed")

GLOBAL_BATCH = 12
STEPS = 8
SAVE_STEPS = 3
KILLED_AFTER = 4
"""The step after which a process is killed: a checkpoint is sealed, and the next one is not due."""
EQUAL = 1e-4
"""Relative difference of losses that only the order of sums explains."""


@dataclass(frozen=True)
class Mode:
    """One way of training; ``ranks`` are those of the beginning and of the end."""

    sharding: str
    offload: str = "none"
    method: str = "full"
    ranks: tuple[int, int] = (2, 2)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        parts = (self.method, self.sharding, self.offload, "to".join(map(str, self.ranks)))
        return "-".join(part.replace("+", "-") for part in parts if part != "none")


MODES = [
    Mode("ddp"),
    Mode("fsdp2"),
    Mode("fsdp2-grad-op", ranks=(2, 3)),
    Mode("zero1", ranks=(2, 1)),
    Mode("zero2"),
    Mode("zero2", "optimizer"),
    Mode("zero3"),
    Mode("zero3", "optimizer+params", ranks=(2, 3)),
    Mode("fsdp2", method="lora", ranks=(2, 1)),
    Mode("zero3", method="lora", ranks=(2, 1)),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A model with random weights as a folder: drawn while it is built, they would depend on the sharding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("base")
    set_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo.model_path()), dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return Source(kind="folder", location=str(folder))


@pytest.fixture(scope="module")
def references(base: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the uninterrupted run with DDP of a method, trained once."""
    runs = tmp_path_factory.mktemp("references")

    def reference(method: str) -> Path:
        folder = runs / method
        if not folder.exists():
            assert engine.launch(job(base, folder, Mode("ddp", method=method))).status == "finished"
        return folder

    return reference


def job(base: Source, folder: Path, mode: Mode) -> TrainJob:
    ranks = mode.ranks[0]
    config = RunConfig(
        model=str(demo.model_path()),
        stack="trl",
        seq_len=64,
        method=mode.method,
        gradient_checkpointing=False,
        sharding=mode.sharding,
        offload=mode.offload,
        micro_batch=2,
        accumulation=GLOBAL_BATCH // (2 * ranks),
        **{"weights_dtype": "fp32", "precision": "none"} | mode.more,
    )
    # A constant rate: near the end of a decaying one, a state that was lost would hardly show.
    settings = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "learning_rate": 1e-3, "lr_scheduler": "constant"}
    return TrainJob(
        run_id=mode.name,
        run_dir=str(folder),
        config=config,
        inventory=f"{ranks}xcpu:4GB",
        global_batch=GLOBAL_BATCH,
        world_size=ranks,
        nproc_per_node=ranks,
        device="cpu",
        model=base,
        tokenizer=demo.tokenizer(),
        data=demo.data(),
        tensorboard=False,
        **settings,
    )


def kill_a_rank(job: TrainJob) -> None:
    """Launch ``job`` and kill its last rank in the middle."""
    pids: list[int] = []

    def react(event: Event) -> None:
        if isinstance(event, Started):
            pids.extend(event.pids)
        if isinstance(event, Stepped) and event.step == KILLED_AFTER:
            os.kill(pids[-1], signal.SIGKILL)

    with pytest.raises(RunFailedError, match=f"rank {job.world_size - 1} was killed by SIGKILL"):
        engine.launch(job, on_event=react)


def kill_the_launcher(job: TrainJob, job_file: Path) -> None:
    """Launch ``job`` from a process of its own, kill that in the middle, and wait for its workers to end."""
    job_file.write_text(job.model_dump_json())
    script = (
        "import sys; from ftplan.launcher import engine; from ftplan.launcher.job import TrainJob\n"
        "engine.launch(TrainJob.model_validate_json(open(sys.argv[1]).read()))"
    )
    run = RunDir(Path(job.run_dir))
    with subprocess.Popen([sys.executable, "-c", script, str(job_file)]) as launcher:
        reached = wait_until(lambda: KILLED_AFTER in losses(run.root), 200)
        launcher.kill()
    assert reached
    started = next(event for event in monitor.read_all(run.metrics) if isinstance(event, Started))
    assert wait_until(lambda: not any(map(runs, started.pids)), 20)


def resume(folder: Path, ranks: int) -> tuple[RunRecord, list[int]]:
    """Go on in ``folder`` on so many ranks; returns the record and the steps trained now."""
    former = engine.load_job(RunDir(folder))
    same = former.world_size == ranks
    job = engine.resume_job(RunDir(folder)) if same else resuming.resumed_on(folder, f"{ranks}xcpu:4GB")
    assert (job.world_size, job.global_batch) == (ranks, GLOBAL_BATCH)
    events: list[Event] = []
    record = engine.launch(job, on_event=events.append)
    return record, [event.step for event in events if isinstance(event, Stepped)]


def assert_equal_weights(folder: Path, reference: Path) -> None:
    from safetensors.torch import load_file

    name = "adapter_model.safetensors" if (reference / "adapter_model.safetensors").exists() else "model.safetensors"
    found, expected = load_file(folder / name), load_file(reference / name)
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        worst = (found[key] - tensor).abs().max().item()
        assert worst < 1e-4, (key, worst)


def resident_bytes() -> int:
    """Memory of this process that is its own, not a file's pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    mode: Mode, base: Source, references: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / mode.name
    kill_a_rank(job(base, folder, mode))
    saved = checkpoints.latest_complete(RunDir(folder).checkpoints)
    assert saved is not None
    assert (saved.world_size, saved.global_batch) == (mode.ranks[0], GLOBAL_BATCH)
    record, steps = resume(folder, mode.ranks[1])
    assert (record.status, record.resumed_from_step) == ("finished", saved.step)
    assert steps == list(range(saved.step + 1, STEPS + 1))
    assert losses(folder) == pytest.approx(losses(references(mode.method)), rel=EQUAL)
    assert_equal_weights(folder / "final", references(mode.method) / "final")
    assert not list(RunDir(folder).checkpoints.glob("universal-*"))


def test_qlora_goes_on_after_its_launcher_is_killed(base: Source, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    mode = Mode("ddp", method="qlora", more={"lora_targets": "qv"})
    assert engine.launch(job(base, tmp_path / "reference", mode)).status == "finished"
    folder = tmp_path / "killed"
    kill_the_launcher(job(base, folder, mode), tmp_path / "launched.json")
    saved = checkpoints.latest_complete(RunDir(folder).checkpoints)
    assert saved is not None
    record, steps = resume(folder, 2)
    assert (record.status, record.resumed_from_step) == ("finished", saved.step)
    assert steps == list(range(saved.step + 1, STEPS + 1))
    assert losses(folder) == pytest.approx(losses(tmp_path / "reference"), rel=EQUAL)
    assert_equal_weights(folder / "final", tmp_path / "reference" / "final")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_run_ends_with_is_a_model(base: Source, references: Callable[[str], Path]) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    ids = torch.arange(16).view(1, 16)
    start, full = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (base.location, references("full") / "final")
    )
    adapted = AutoPeftModelForCausalLM.from_pretrained(references("lora") / "final")
    with torch.no_grad():
        before, after, with_adapter = (model(input_ids=ids).logits for model in (start, full, adapted))
    assert (after - before).abs().max() > 0.1
    assert (with_adapter - before).abs().max() > 0.01


def test_ranks_that_receive_their_weights_touch_no_memory_for_them(base: Source, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig

    from ftplan.launcher.train.handing_on import describe, untouched_model
    from ftplan.launcher.train.model import from_config

    large = AutoConfig.from_pretrained(demo.model_path(), hidden_size=2048, intermediate_size=8192)
    large.save_pretrained(tmp_path)
    mixed = Mode("fsdp2", more={"weights_dtype": "bf16", "precision": "bf16"})
    training = job(Source(kind="folder", location=str(tmp_path)), tmp_path / "run", mixed)
    with torch.device("meta"):
        described = describe(from_config(training))
    before = resident_bytes()
    model = untouched_model(training, described)
    grown = resident_bytes() - before
    weights = list(model.parameters())
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert sum(weight.nbytes for weight in weights) > 800e6
    assert grown < 40e6
    addresses = {weight.data_ptr() for weight in weights}
    assert len(addresses) == len(weights)
    assert set(describe(model)) == set(described)
