"""``--quiet``: the answer alone."""

import json
from pathlib import Path

import pytest
from run_folders import run_folder, started, stepped

from ftplan import cli as command_line
from ftplan.launcher.events import Failed

CARDS = ("--model", "Qwen-7B", "--gpus", "2x24GB")
TRAIN = "model_name_or_path: Qwen/Qwen2.5-7B\nstage: sft\ndo_train: true\nfinetuning_type: lora\ncutoff_len: {}\n"


@pytest.fixture
def files(tmp_path):
    Path("good.yaml").write_text(TRAIN.format(1024) + "bf16: true\ngradient_checkpointing: true\n", "utf-8")
    Path("bad.yaml").write_text(TRAIN.format(32768) + "bf16: true\n", "utf-8")
    events = [started(), *map(stepped, range(1, 13)), Failed(1, "out_of_memory", "CUDA out of memory")]
    run_folder(Path("runs/one"), events, "failed")
    run_folder(Path("runs/two"), events, "failed")


@pytest.mark.parametrize(
    ("arguments", "code", "begins"),
    [
        (("plan", *CARDS), 0, ["plan: lora rank 16, ddp", "fits: needs 17.85 GiB"]),
        (("plan", "--model", "Qwen-7B", "--gpus", "1x1GB"), 1, ["no plan: nothing fits", "nearest miss by "]),
        (("estimate", *CARDS), 0, ["fits: needs "]),
        (("estimate", *CARDS, "--method", "full"), 1, ["does not fit: needs "]),
        (("check", "good.yaml", "--gpus", "1x80GB"), 0, ["fits: needs "]),
        (("check", "bad.yaml", "--gpus", "1x24GB"), 1, ["out of memory: needs "]),
        (("need", "--model", "Qwen2.5-0.5B", "--method", "lora", "--cards", "8GB,24GB"), 0, ["lora: 1x8GB, 1x24GB"]),
        (("models", "qwen2.5", "0.5b"), 0, ["Qwen/Qwen2.5-0.5B"]),
        (("models", "no-such-model"), 1, []),
        (("gpus", "rtx4090d"), 0, ["RTX4090D"]),
        (("report", "runs/one"), 0, ["20250131-120000-3f2a: failed, 12 of 60 steps, loss "]),
        (("report", "runs"), 0, ["runs/one: failed", "runs/two: failed"]),
        (("calibrate", "--show"), 0, ["nothing was measured or recorded yet"]),
        (("calibrate", "--reset"), 0, ["nothing to remove"]),
        (("run", "--demo", "--dry-run"), 0, [""]),
    ],
    ids=lambda given: " ".join(given)[:40] if isinstance(given, tuple) else "",
)
def test_one_or_two_lines(cli, files, arguments, code, begins):
    answer = cli(*arguments, "-q")
    assert answer.code == code
    lines = answer.out.splitlines()
    assert len(lines) == len(begins)
    for line, begin in zip(lines, begins, strict=True):
        assert line.startswith(begin)
    assert all(line.startswith(("no model", "hint: ")) for line in answer.err.splitlines())


def test_doctor_tells_what_is_wrong_on_stderr(cli):
    answer = cli("doctor", "--quiet")
    assert len(answer.out.splitlines()) == 1
    assert all(line.startswith(("error: ", "warning: ")) for line in answer.err.splitlines())


def test_the_next_command_is_not_quiet(cli, files):
    assert cli("run", "--demo", "--dry-run", "-q", "--nodes", "1").err == ""
    assert "nothing to fix" not in cli("check", "good.yaml", "--gpus", "1x80GB", "--fix", "-q").err
    assert "nothing to fix" in cli("check", "good.yaml", "--gpus", "1x80GB", "--fix").err


@pytest.mark.parametrize("name", command_line.COMMANDS)
@pytest.mark.parametrize("order", [("--json", "-q"), ("--quiet", "--json")], ids=" ".join)
def test_json_and_quiet_exclude_each_other(cli, name, order):
    needed = {"merge": ("run", "--out", "merged"), "predict": ("run", "--data", "data.jsonl")}.get(name, ())
    answer = cli(name, *needed, *order)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: --json and --quiet exclude each other\nhint: ")


def test_check_refuses_another_format_too(cli, files):
    answer = cli("check", "good.yaml", "--gpus", "1x80GB", "-q", "--format", "sarif")
    assert answer.code == 2
    assert answer.err.startswith("error: --format sarif and --quiet exclude each other")


def test_quick_is_another_option(cli, files):
    assert len(cli("check", "good.yaml", "--gpus", "1x80GB", "--quick").out.splitlines()) > 3


def test_json_is_still_whole(cli):
    assert json.loads(cli("estimate", *CARDS, "--json").out)["fits"]
