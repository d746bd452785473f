"""Runs by LLaMA-Factory, with a stand-in for llamafactory-cli that writes what the real one writes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftplan import cli
from ftplan.errors import InputError, RunFailedError
from ftplan.launcher import checkpoints, demo, monitor, records
from ftplan.launcher.events import Evaluated, Event, Failed, Finished, Noted, Saved, Started, Stepped
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.launcher.llamafactory import engine
from ftplan.launcher.llamafactory.files import rows as written_rows
from ftplan.launcher.llamafactory.log import LogReader, failure, parameters
from ftplan.launcher.records import RunDir
from ftplan.spec import RunConfig
from ftplan.units import GIB
from ftplan.workflows import running

STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys, time, yaml
assert sys.argv[1] == "train"
given = yaml.safe_load(open(sys.argv[2]))
out = pathlib.Path(given["output_dir"])
out.mkdir(parents=True, exist_ok=True)
(out / "given.json").write_text(json.dumps([given, dict(os.environ)]))
info = json.load(open(os.path.join(given["dataset_dir"], "dataset_info.json")))[given["dataset"]]
rows = open(os.path.join(given["dataset_dir"], info["file_name"])).read().splitlines()
print("[INFO|2026-01-31 12:00:00] llamafactory.model.loader:143 >> trainable params: 1,250 || all params: 60,000 "
      "|| trainable%: 2.0833", flush=True)
resumed = given.get("resume_from_checkpoint", "")
first = int(resumed.rpartition("-")[2]) if resumed else 0
mode = os.environ.get("STAND_IN", "")

def log(**line):
    with open(out / "trainer_log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

for step in range(first + 1, given["max_steps"] + 1):
    if mode == "out-of-memory" and step == 3:
        print("[rank0]: Traceback (most recent call last):\\n[rank0]: torch.OutOfMemoryError: CUDA out of memory. "
              "Tried to allocate 2.00 GiB.\\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: ")
        sys.exit(1)
    tokens, seconds = step * 800, 4.0 + 2.0 * (step - first)
    log(current_steps=step, total_steps=given["max_steps"], loss=3.0 - 0.1 * step, lr=1e-4, epoch=step / 10,
        percentage=10.0 * step, elapsed_time="0:00:0%d" % (seconds % 10), remaining_time="0:00:01",
        throughput=round(tokens / seconds, 2), total_tokens=tokens, vram_allocated=1.5, vram_reserved=2.25)
    if step % given["save_steps"] == 0:
        saved = out / f"checkpoint-{{step}}"
        saved.mkdir()
        (saved / "adapter_model.safetensors").write_bytes(b"w")
        (saved / "trainer_state.json").write_text("{{}}")
    while mode == "waits" and step == 5:
        time.sleep(0.05)
log(current_steps=given["max_steps"], total_steps=given["max_steps"], eval_loss=2.5, percentage=100.0)
log(current_steps=given["max_steps"], total_steps=given["max_steps"], epoch=1.0, percentage=100.0)
(out / "adapter_model.safetensors").write_bytes(b"adapter")
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The folder of an environment with a stand-in for LLaMA-Factory 0.9.4."""
    root = tmp_path / "factory"
    installed = root / "lib" / "python3.11" / "site-packages" / "llamafactory-0.9.4.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.4\n")
    (root / "bin").mkdir()
    program = root / "bin" / "llamafactory-cli"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return root


def make_job(tmp_path: Path, **changes: Any) -> TrainJob:
    config = RunConfig(
        model=str(demo.model_path()),
        stack="llamafactory",
        sharding="zero2",
        adapter_dtype="fp32",
        prepare_kbit=False,
        micro_batch=4,
        accumulation=2,
        seq_len=128,
    )
    given: dict[str, Any] = {
        "run_id": "run",
        "run_dir": str(tmp_path / "run"),
        "config": config,
        "inventory": "2x24GB",
        "global_batch": 16,
        "world_size": 2,
        "nproc_per_node": 2,
        "device": "cuda",
        "model": demo.model(),
        "tokenizer": demo.tokenizer(),
        "data": demo.data(),
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "engine_env": str(tmp_path / "factory"),
    }
    return TrainJob(**given | changes)


def launch(job: TrainJob) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    return engine.launch(job, on_event=events.append), events


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_run_is_followed_and_recorded_like_our_own(environment: Path, tmp_path: Path) -> None:
    record, events = launch(make_job(tmp_path))
    assert (record.status, record.steps, record.last_loss) == ("finished", 6, pytest.approx(2.4))
    started = of(Started, events)[0]
    assert (started.total_params, started.trainable_params, started.samples) == (60_000, 1_250, 178)
    assert (started.total_steps, started.world_size, started.versions) == (6, 2, {"llamafactory": "0.9.4"})
    steps: list[Stepped] = of(Stepped, events)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[3].step_seconds == pytest.approx(2.0, abs=0.01)
    assert steps[3].tokens_per_second == pytest.approx(400, rel=0.01)
    assert [event.step for event in of(Saved, events)] == [2, 4, 6]
    assert of(Evaluated, events) == [Evaluated(step=6, loss=2.5)]
    assert isinstance(events[-1], Finished)
    assert record.measured.peak_allocated_bytes == int(1.5 * GIB)
    assert record.measured.peak_reserved_bytes == int(2.25 * GIB)
    run = RunDir(tmp_path / "run")
    assert monitor.read_all(run.metrics) == events
    assert records.read_record(run) == record
    assert (run.final / "adapter_model.safetensors").read_bytes() == b"adapter"
    assert [each.step for each in checkpoints.complete(run.checkpoints)] == [6, 4]


def test_what_it_is_started_with(environment: Path, tmp_path: Path) -> None:
    launch(make_job(tmp_path, data=demo.data().model_copy(update={"eval_fraction": 0.1})))
    run = RunDir(tmp_path / "run")
    settings, variables = json.loads((run.final / "given.json").read_text())
    assert settings == yaml.safe_load((run.root / "train.yaml").read_text())
    assert settings["deepspeed"] == str(run.root / "deepspeed.json")
    expected = {"dataset": "ftplan", "max_steps": 6, "save_steps": 2, "val_size": 0.1, "ddp_timeout": 1800}
    assert expected.items() <= settings.items()
    assert settings["train_from_scratch"] is True
    assert "save_total_limit" not in settings
    assert (variables["FORCE_TORCHRUN"], variables["NPROC_PER_NODE"], variables["RECORD_VRAM"]) == ("1", "2", "1")
    assert variables["PATH"].startswith(f"{environment}/bin:")
    assert variables["PYTHONPATH"] == ""


def test_a_run_that_was_stopped_goes_on(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "waits")

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    job = make_job(tmp_path)
    assert engine.launch(job, on_event=stop).status == "interrupted"
    monkeypatch.delenv("STAND_IN")
    run = RunDir(tmp_path / "run")
    assert records.newest_resumable(tmp_path) == run
    record, events = launch(job.model_copy(update={"resume": True}))
    assert (record.status, record.resumed_from_step, record.steps) == ("finished", 4, 6)
    steps: list[Stepped] = of(Stepped, events)
    assert [step.step for step in steps] == [5, 6]
    assert steps[1].step_seconds == pytest.approx(2.0, abs=0.01)
    settings = json.loads((run.final / "given.json").read_text())[0]
    assert settings["resume_from_checkpoint"] == str(run.checkpoints / "checkpoint-4")


def test_a_run_without_memory_says_so(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "out-of-memory")
    with pytest.raises(RunFailedError, match="CUDA out of memory") as caught:
        launch(make_job(tmp_path))
    assert "smaller micro-batch" in caught.value.hint
    # The checkpoint of step 2 may be whole: nothing shows that training went on after it.
    run = RunDir(tmp_path / "run")
    found = of(Failed, monitor.read_all(run.metrics))
    assert found[0].kind == "out_of_memory"
    state = records.read_state(run)
    assert state is not None
    assert state.status == "failed"


def test_an_environment_without_it_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no llamafactory-cli in") as caught:
        engine.prepare(make_job(tmp_path))
    assert "pip install llamafactory" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 4, "global_batch": 32}, "processes of one machine"),
        ({"tokenizer": Source(kind="hub", location="other/tokenizer")}, "takes the tokenizer from the model"),
        ({"chat_template": "chatml"}, "takes no chat templates"),
        ({"trackers": ("wandb",)}, "takes no trackers"),
        ({"count_flops": True}, "takes no counting of FLOPs"),
        ({"profile": True}, "takes no profiles"),
    ],
)
def test_what_it_cannot_be_started_with(
    environment: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.prepare(make_job(tmp_path, **changes))


def test_preparing_touches_nothing(environment: Path, tmp_path: Path) -> None:
    prepared = engine.prepare(make_job(tmp_path))
    assert not (tmp_path / "run").exists()
    names = {Path(path).name for path in prepared.files}
    assert names == {"train.yaml", "deepspeed.json", "job.json", "launch.sh"}
    assert prepared.argv == (f"{environment}/bin/llamafactory-cli", "train", f"{tmp_path}/run/train.yaml")


CHAT = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
TWICE = {"messages": [{"role": "user", "content": "Hi."}, *CHAT["messages"]]}


def data_of(tmp_path: Path, *rows: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], tuple[str, ...]]:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = written_rows(make_job(tmp_path, data=DataSource(paths=(str(path),))))
    written = [json.loads(line) for line in found.files["data/rows.jsonl"].splitlines()]
    assert len(written) == found.count
    return json.loads(found.files["data/dataset_info.json"])["ftplan"], written, found.notes


def test_conversations_are_written_with_their_tags(tmp_path: Path) -> None:
    info, rows, notes = data_of(tmp_path, CHAT, TWICE)
    assert info["formatting"] == "sharegpt"
    assert (info["columns"], info["tags"]["user_tag"]) == ({"messages": "messages"}, "user")
    assert rows == [CHAT, TWICE]
    assert notes == ("LLaMA-Factory leaves out 1 of 2 rows: their turns do not alternate",)


def test_pairs_are_written_as_instructions(tmp_path: Path) -> None:
    info, rows, notes = data_of(tmp_path, {"prompt": "1 + 1 =", "completion": " 2"})
    assert info["columns"] == {"prompt": "prompt", "response": "completion"}
    assert rows == [{"prompt": "1 + 1 =", "completion": " 2"}]
    assert notes == ()


def test_plain_text_is_another_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a stage of its own"):
        data_of(tmp_path, {"text": "some text"})


def test_what_is_left_out_or_replaced_is_told(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([CHAT, TWICE, {"messages": []}]))
    monkeypatch.setenv("HF_HOME", "/own")
    data = DataSource(paths=(str(path),), skip_bad_rows=True)
    _, events = launch(make_job(tmp_path, data=data, cache_dir=str(tmp_path)))
    told = [event.message.partition(":")[0] for event in of(Noted, events)]
    assert told == [
        f"HF_HOME=/own of your environment is replaced by {tmp_path}/huggingface",
        "skipped, as told",
        "LLaMA-Factory leaves out 1 of 2 rows",
    ]


def test_lines_of_older_releases_have_no_tokens() -> None:
    reader = LogReader()
    line = {"current_steps": 10, "total_steps": 20, "loss": 1.5, "lr": 1e-4, "epoch": 0.5}
    first = next(reader.events(json.dumps({**line, "elapsed_time": "0:00:30"}).encode()))
    later = next(reader.events(json.dumps({**line, "current_steps": 20, "elapsed_time": "1 day, 0:01:10"}).encode()))
    assert isinstance(first, Stepped)
    assert isinstance(later, Stepped)
    assert (first.step_seconds, first.tokens_per_second, first.memory[0].allocated_bytes) == (3.0, 0.0, None)
    assert later.step_seconds == pytest.approx((86_400 + 40) / 10)
    assert list(reader.events(b"no json")) == list(reader.events(b"[1]")) == []


def test_what_the_output_tells() -> None:
    assert parameters("x >> trainable params: 20,185,088 || all params: 7,635,801,600 || trainable%: 0.2643") == (
        7_635_801_600,
        20_185_088,
    )
    assert parameters("nothing") is None
    found = failure("Traceback:\nValueError: no template\nsubprocess.CalledProcessError: torchrun returned 1\n")
    assert found == Failed(rank=0, kind="error", message="ValueError: no template")
    assert failure("ended") is None
    lost = "torch.distributed.DistBackendError: NCCL error\n"
    memory = "[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    for text in (lost + memory, memory + lost):
        told = failure(text)
        assert told is not None
        assert (told.kind, "smaller micro-batch" in told.hint) == ("out_of_memory", True)
    found = failure("OSError: [Errno 28] No space left on device\n")
    assert found is not None
    assert found.kind == "disk_full"


def test_the_command(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "detect_gpus", lambda: (None, None))
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (weights / name).write_bytes((demo.model_path() / name).read_bytes())
    (weights / "model.safetensors").write_bytes(b"w")
    words = ["run", "--model", str(weights), "--gpus", "2x24GB", "--data", str(demo.instructions_path())]
    words += ["--seq-len", "128", "--global-batch", "16", "--max-steps", "3", "--save-steps", "3"]
    words += ["--engine", "llamafactory", "--engine-env", str(environment), "--run-dir", str(tmp_path / "run")]
    assert cli.run([*words, "--dry-run"]) == 0
    assert "llamafactory-cli train" in capsys.readouterr().out
    # Without a card preflight finds no driver; of this environment's libraries nothing is asked.
    assert cli.run(words) == 2
    assert "the run cannot start here: driver" in " ".join(capsys.readouterr().err.split())
    assert cli.run([*words, "--force"]) == 0
    assert "finished: 3 steps" in capsys.readouterr().out
    assert cli.run(["run", "--model", "x", "--engine", "llamafactory"]) == 2
    assert "--engine-env DIR" in capsys.readouterr().err
    assert cli.run(["run", "--model", "x", "--engine", "axolotl"]) == 2
