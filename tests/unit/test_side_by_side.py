"""The logic of ``benchmarks.side_by_side``; ``python -m benchmarks.side_by_side --tiny`` runs both programs."""

import json
import sys

import pytest

from benchmarks.side_by_side import __main__ as program
from benchmarks.side_by_side import launches, material
from benchmarks.side_by_side.cases import CASES, TINY, TINY_SHAPE, Case, llamafactory_config, native_config
from benchmarks.side_by_side.following import Followed, follow
from benchmarks.side_by_side.launches import Launch, Training
from ftplan.launcher import demo
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import written
from ftplan.launcher.job import TrainJob
from ftplan.launcher.process import Outcome
from ftplan.profiles.frameworks import load_vocabulary

STEPS = (
    "import time, json\nfor n in range(4): print(json.dumps({'loss': n / 2}), file=open('%s', 'a')); time.sleep(0.02)"
)


@pytest.mark.parametrize("case", [*CASES, *TINY], ids=lambda case: case.id)
def test_both_train_the_same(case):
    ours, theirs = (make(case, case.model).model_dump() for make in (native_config, llamafactory_config))
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == {"stack", "loss_path"} | ({"weights_dtype"} if case.method == "full" else set())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_files_say_all_of_it(case):
    """`written` reads its files back and raises for a field that is lost."""
    emitted, _ = written(FORMATS["llamafactory"], llamafactory_config(case, case.model), Target(dataset="rows"))
    batch = emitted.main["per_device_train_batch_size"] * emitted.main["gradient_accumulation_steps"]
    assert (batch, emitted.main["cutoff_len"]) == (case.global_batch, case.seq_len)


@pytest.fixture
def training(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(material.shape_of(TINY[0])))
    return Training(TINY[0], material.Material(model, tmp_path / "data"), "cpu", steps=6, seed=1)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site" / "llamafactory-0.9.5.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "llamafactory-0.9.5.dist-info" / "METADATA").write_text("Name: llamafactory\nVersion: 0.9.5\n")
    return tmp_path / "site"


def test_what_is_stated_are_settings_that_llamafactory_knows(training):
    known = {*load_vocabulary("llamafactory").defaults, *load_vocabulary("transformers").defaults}
    assert {each.partition("=")[0] for each in launches.stated(training)} <= known


def test_llamafactory_has_libraries_of_its_own(training, site, tmp_path):
    launch = launches.llamafactory(training, site, tmp_path / "run")
    assert (launch.env["PYTHONPATH"], launch.env["CUDA_VISIBLE_DEVICES"]) == (str(site), "")
    assert "for LLaMA-Factory 0.9.5" in (tmp_path / "run" / "train.yaml").read_text()
    assert launch.loss_of(b'{"current_steps": 1, "loss": 2.5}') == 2.5
    assert launch.loss_of(b'{"current_steps": 6, "epoch": 1.0}') is None


def test_the_engine_is_started_with_the_same_rows(training, tmp_path):
    launch = launches.native(training, native_config(training.case, "Qwen2.5-1.5B"), tmp_path / "run")
    job = TrainJob.model_validate_json((tmp_path / "run" / "job.json").read_text())
    assert job.data.paths == (str(training.material.rows),)
    assert (job.max_steps, job.global_batch, job.save_steps) == (6, 4, None)
    assert launch.argv[-1] == str(tmp_path / "run" / "job.json")


def test_rows_fill_the_sequence():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(demo.model_path() / "tokenizer.json"))
    rows = list(material.filling_rows(3, 256, seed=7))
    assert all(len(tokenizer.encode(row["output"]).ids) >= 256 for row in rows)
    assert len({row["output"] for row in rows}) == 3


def test_a_tiny_shape_holds_the_tokens_of_the_rows():
    vocabulary = json.loads((demo.model_path() / "config.json").read_text())["vocab_size"]
    assert TINY_SHAPE["vocab_size"] >= vocabulary


def launch_of(program, tmp_path):
    progress = tmp_path / "progress.jsonl"
    code = program % progress if "%s" in program else program
    return Launch((sys.executable, "-c", code), {}, progress, tmp_path / "log", lambda line: json.loads(line)["loss"])


def test_steps_are_noted_as_they_come(tmp_path):
    found = follow(launch_of(STEPS, tmp_path), limit_seconds=30)
    assert found.losses == (0.0, 0.5, 1.0, 1.5)
    assert found.ok(4)
    assert not found.ok(5)
    assert 0.015 < found.step_seconds < 5


def test_a_failure_keeps_what_was_printed(tmp_path):
    found = follow(launch_of("raise SystemExit('out of luck')", tmp_path), limit_seconds=30)
    assert (found.outcome, found.step_seconds) == (Outcome(1, None), None)
    assert found.log_tail == "out of luck\n"


def test_a_run_is_ended_after_its_time(tmp_path):
    found = follow(launch_of("import time; time.sleep(60)", tmp_path), limit_seconds=0.2)
    assert found.outcome is None
    assert found.seconds < 15


def test_the_first_steps_are_left_out():
    followed = Followed((9.0, 12.0, 14.0, 15.0, 16.0, 17.5), (1.0,) * 6, Outcome(0, None), 20.0, None, "")
    assert followed.step_seconds == 1.0


def row(engine, status, speed=None, case="one"):
    return {"case": case, "engine": engine, "round": 1, "status": status, "tokens_per_second": speed}


def test_a_summary_takes_the_median_of_what_was_measured():
    rows = [
        *(row("native", "measured", speed) for speed in (110.0, 130.0)),
        row("llamafactory", "measured", 100.0),
        row("llamafactory", "failed"),
        row("plan", "no time"),
    ]
    found = program.summed(rows)
    assert found["not_measured"] == 2
    assert found["cases"]["one"]["tokens_per_second"]["native"] == 120.0
    assert found["cases"]["one"]["ratios"]["native / llamafactory"] == 1.2
    assert found["cases"]["one"]["ratios"]["plan / llamafactory"] is None


def test_tokens_per_second_are_of_the_whole_step(tmp_path):
    case = Case("one", "Qwen2.5-1.5B", "lora", micro_batch=2, accumulation=4, seq_len=100)
    followed = Followed((1.0, 2.0, 3.0, 5.0, 7.0), (2.0,) * 5, Outcome(0, None), 8.0, None, "")
    told = program.told(case, launch_of("", tmp_path), followed, 5)
    assert (told["status"], told["tokens_per_second"]) == ("measured", 400.0)
    assert program.told(case, launch_of("", tmp_path), followed, 6)["status"] == "failed"
