"""The pre-commit hook and the GitHub Action: what their files say exists, and what they start does what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftplan import cli

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
PRINTER = '#!/usr/bin/env bash\nprintf \'%s\\0\' "$@" end\ncase "$*" in *bad*) exit 1 ;; esac\n'


def test_the_hook() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert {"id", "name", "entry", "language", "files", "args"} <= set(hook)
    assert (hook["id"], hook["language"]) == ("ftplan-check", "python")
    assert "--gpus" in hook["args"]
    assert [bool(re.search(hook["files"], name)) for name in ("a/b.yaml", "a.yml", "ds.json", "a.py")] == [1, 1, 1, 0]
    interpreter, option, module = hook["entry"].split()
    assert (interpreter, option) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None


def test_the_action_has_what_composite_actions_need() -> None:
    assert {"name", "description", "inputs", "runs"} <= set(ACTION)
    assert ACTION["runs"]["using"] == "composite"
    assert all({"name", "shell", "run"} <= set(step) for step in STEPS)
    assert {name for name, each in ACTION["inputs"].items() if each.get("required")} == {"files", "gpus"}
    assert "args" in ACTION["inputs"]


def test_inputs_reach_scripts_as_variables_only() -> None:
    """What stands in a script in double braces is pasted into it, quotes and all."""
    used = set()
    for step in STEPS:
        assert "${{" not in step["run"]
        used |= {found for value in step["env"].values() for found in re.findall(r"inputs\.(\w+)", value)}
    assert used == set(ACTION["inputs"])


def test_the_command_is_installed_and_has_what_the_action_gives() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert "ftplan" in scripts
    assert "check" in cli.COMMANDS
    assert '/ftplan" check --gpus "$GPUS" --format github' in STEPS[-1]["run"]
    assert '"$GITHUB_ACTION_PATH"' in STEPS[0]["run"]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["name"])
def test_scripts_parse(step: dict[str, Any]) -> None:
    subprocess.run(["bash", "-n", "-c", step["run"]], check=True)


def checked(folder: Path, files: str, *, gpus: str = "2x24GB", args: str = "") -> tuple[list[list[str]], int, str]:
    """The commands that the action's last step starts for the files in ``folder``, its exit code and its output."""
    tool = folder / "temp" / "ftplan-venv" / "bin" / "ftplan"
    tool.parent.mkdir(parents=True)
    tool.write_text(PRINTER)
    tool.chmod(0o755)
    variables = {"RUNNER_TEMP": str(folder / "temp"), "FILES": files, "GPUS": gpus, "ARGS": args}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", STEPS[-1]["run"]],
        cwd=folder,
        env={**variables, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [each.split("\0") for each in done.stdout.split("\0end\0") if "\0" in each]
    return calls, done.returncode, done.stdout + done.stderr


def test_each_file_is_checked(tmp_path: Path) -> None:
    for name in ("a.yaml", "b c.yaml", "deep/er/d.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    calls, code, _ = checked(tmp_path, "*.yaml\ndeep/**/*.yaml\nmissing.yaml\n", args="--margin 0.1  --seq-len 64")
    common = ["check", "--gpus", "2x24GB", "--format", "github", "--margin", "0.1", "--seq-len", "64", "--"]
    files = ["a.yaml", "b c.yaml", "deep/er/d.yaml", "missing.yaml"]
    assert calls == [[*common, name] for name in files]
    assert code == 0


def test_one_failure_fails_the_step_and_the_others_are_checked_all_the_same(tmp_path: Path) -> None:
    calls, code, _ = checked(tmp_path, "bad.yaml\ngood.yaml")
    assert (len(calls), code) == (2, 1)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    calls, code, output = checked(tmp_path, "*.yaml\n")
    assert (calls, code) == ([], 2)
    assert "::error" in output


def test_values_of_inputs_run_nothing(tmp_path: Path) -> None:
    calls, _, _ = checked(tmp_path, "$(touch hacked).yaml\n--x.yaml", gpus="`touch hacked`", args="; touch hacked")
    assert calls[0][1:3] == ["--gpus", "`touch hacked`"]
    assert [call[-1] for call in calls] == ["$(touch hacked).yaml", "--x.yaml"]
    assert not (tmp_path / "hacked").exists()


TRAINING = """\
model_name_or_path: Qwen/Qwen2.5-7B
stage: sft
do_train: true
finetuning_type: {method}
cutoff_len: 1024
per_device_train_batch_size: 1
output_dir: out
bf16: true
"""


def changed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftplan.cli.changed", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_hook_checks_each_file_by_itself(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text(TRAINING.format(method="lora"))
    (tmp_path / "full.yaml").write_text(TRAINING.format(method="full"))
    assert changed(tmp_path, "--gpus", "1x24GB", "lora.yaml").returncode == 0
    done = changed(tmp_path, "--gpus", "1x24GB", "lora.yaml", "full.yaml")
    assert done.returncode == 1
    assert changed(tmp_path, "--gpus", "1x80GB", "--method=lora", "full.yaml", "lora.yaml").returncode == 0


def test_the_hook_passes_over_what_is_no_training(tmp_path: Path) -> None:
    files = {"ci.yaml": "on: push\n", "ds.json": '{"zero_optimization": {"stage": 2}}', "broken.yaml": "a: [\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = changed(tmp_path, "--gpus", "1x24GB", *files)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("is not checked") == 3


def test_the_hook_with_nothing_to_check() -> None:
    assert changed(Path.cwd(), "--gpus", "1x24GB").returncode == 0
