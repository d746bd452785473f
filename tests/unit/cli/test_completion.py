"""The Tab key: the protocol of each shell, in a process of its own, as the installed scripts speak it."""

import json
import os
import subprocess
import sys
import time

import pytest

from ftplan.cli import completing, options
from ftplan.cli.plan import FORMATS
from ftplan.launcher.formats.registry import FORMATS as READ
from ftplan.spec import PlanRequest, RunConfig
from ftplan.workflows import emitting

FTPLAN = [sys.executable, "-m", "ftplan"]


def asked(**environment):
    done = subprocess.run(FTPLAN, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.stderr == ""
    return done


def bash(*words):
    """What bash gets for ``words``, the last of which is being typed."""
    environment = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return asked(_FTPLAN_COMPLETE="complete_bash", **environment).stdout.split()


def values(kind, name):
    annotation = kind.model_fields[name].annotation
    return list(annotation.__args__)


def test_commands():
    assert "estimate" in bash("ftplan", "")
    assert bash("ftplan", "gp") == ["gpus"]


def test_options_of_one_command():
    assert bash("ftplan", "plan", "--was-") == ["--was-gpus", "--was-batch"]
    assert bash("ftplan", "models", "--was-") == []


def test_models_in_any_case_as_they_were_begun():
    found = bash("ftplan", "plan", "--model", "qwen2.5-7")
    assert "qwen2.5-7B" in found
    assert all(name.startswith("qwen2.5-7") for name in found)
    assert len({name.lower() for name in found}) == len(found)


def test_without_a_letter_models_are_hub_ids():
    found = bash("ftplan", "plan", "--model", "")
    assert len(found) == 116
    assert all("/" in name for name in found)


def test_an_equals_sign_is_a_word_of_its_own_in_bash():
    assert "Qwen-7B" in bash("ftplan", "plan", "--model", "=", "Qwen-")
    assert "zero3" in bash("ftplan", "plan", "--gpus", "=", "2x24GB", "--sharding", "=")


@pytest.mark.parametrize(
    ("typed", "among"),
    [
        ("", {"local", "cpu", "RTX4090", "24GB"}),
        ("2xrtx409", {"2xrtx4090", "2xrtx4090D"}),
        ("2x8xH1", {"2x8xH100-SXM"}),
        ("1xA100-80GB-SXM+1x24", {"1xA100-80GB-SXM+1x24GB"}),
        ("loc", {"local"}),
    ],
)
def test_gpus_with_their_count(typed, among):
    found = bash("ftplan", "plan", "--gpus", typed)
    assert among <= set(found)
    assert all(name.startswith(typed) for name in found)
    assert "2xlocal" not in found


@pytest.mark.parametrize("name", ["precision", "quantization", "sharding", "offload", "attention", "kernels", "stack"])
def test_fields_have_the_values_of_the_spec(name):
    assert bash("ftplan", "estimate", f"--{name}", "") == values(RunConfig, name)


def test_a_plan_may_leave_the_method_open():
    assert bash("ftplan", "plan", "--method", "") == values(PlanRequest, "method")
    assert bash("ftplan", "estimate", "--method", "") == values(RunConfig, "method")
    assert bash("ftplan", "plan", "--objective", "") == values(PlanRequest, "objective")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("check", "--format", "s"), ["sarif"]),
        (("check", "--from", "ax"), ["axolotl"]),
        (("plan", "--format", "s"), ["swift", "slurm", "skypilot"]),
        (("plan", "--weights-dtype", ""), values(RunConfig, "weights_dtype")),
        (("plan", "--link", "n"), ["nvlink"]),
        (("estimate", "--optimizer", "paged_adamw_8"), ["paged_adamw_8bit"]),
        (("estimate", "--estimator", ""), ["analytic", "trace"]),
        (("need", "--cards", "24GB,rtx4090"), ["24GB,rtx4090", "24GB,rtx4090D", "24GB,rtx4090-Laptop"]),
        (("predict", "run", "--metrics", "loss,r"), ["loss,rouge"]),
        (("predict", "run", "--data-format", "sh"), ["sharegpt"]),
        (("merge", "run", "--dtype", "k"), ["keep"]),
        (("run", "--engine", "l"), ["llamafactory"]),
        (("run", "--track", "wa"), ["wandb"]),
        (("run", "--chat-template", "ll"), ["llama3"]),
        (("calibrate", "--gpus", ""), ["local", "cpu"]),
        (("check", "train"), []),
        (("plan", "--out", ""), []),
    ],
    ids=lambda given: " ".join(given)[:30],
)
def test_values(words, found):
    assert bash("ftplan", *words) == found


def test_names_of_formats_are_the_registry_s():
    assert sorted(options.FRAMEWORKS) == sorted(READ)
    assert sorted(FORMATS) == sorted(emitting.valid_names())


def test_zsh_and_fish():
    zsh = asked(_FTPLAN_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="ftplan plan --sharding zero")
    assert zsh.stdout.splitlines() == ['_arguments \'*: :(("zero1"', '"zero2"', '"zero3"))\'']
    fish = {"_FTPLAN_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "ftplan plan --sharding zero"}
    assert asked(**fish, _TYPER_COMPLETE_FISH_ACTION="get-args").stdout.split() == ["zero1", "zero2", "zero3"]
    assert asked(**fish, _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 0
    fish["_TYPER_COMPLETE_ARGS"] = "ftplan check train"
    assert asked(**fish, _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"COMP_WORDS": "ftplan\nplan", "COMP_CWORD": "x"},
        {"COMP_WORDS": "ftplan", "COMP_CWORD": "9"},
        {"COMP_WORDS": 'ftplan\nplan\n--model\n"Qw', "COMP_CWORD": "3"},
        {"COMP_WORDS": "ftplan\nno-such\n--x\n", "COMP_CWORD": "3"},
        {"COMP_WORDS": "ftplan\nplan\n--seq-len\nten\n--model\n", "COMP_CWORD": "5"},
        {"COMP_WORDS": "ftplan\nplan\n--json\n-q\n--model\n", "COMP_CWORD": "5"},
        {"_FTPLAN_COMPLETE": "complete_nothing"},
        {},
    ],
    ids=str,
)
def test_nothing_that_is_odd_ends_in_a_traceback(environment):
    done = subprocess.run(
        FTPLAN,
        capture_output=True,
        text=True,
        env={**os.environ, "_FTPLAN_COMPLETE": "complete_bash", **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_to_install(shell):
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [*FTPLAN, "--show-completion", shell],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    assert f"_FTPLAN_COMPLETE=complete_{shell}" in done.stdout
    assert "python" not in done.stdout


def test_it_is_installed_for_bash(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [*FTPLAN, "--install-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "bash completion installed in" in done.stdout
    script = tmp_path / ".bash_completions" / "ftplan.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text("utf-8")
    subprocess.run(["bash", "-n", script], check=True)


LOADED = """\
import json, os, sys
os.environ.update(_FTPLAN_COMPLETE="complete_bash", COMP_WORDS=sys.argv[1].replace(" ", "\\n"), COMP_CWORD="3")
sys.argv = ["ftplan"]
from ftplan.cli import run
try:
    run()
except SystemExit:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("option", ["--model", "--gpus", "--sharding", "--format", "--optimizer"])
def test_it_is_light_and_soon(option):
    begun = time.perf_counter()
    line = f"ftplan plan {option} "
    done = subprocess.run([sys.executable, "-c", LOADED, line], capture_output=True, text=True, check=True)
    assert time.perf_counter() - begun < 3  # a third of a second on an idle machine
    assert done.stdout
    modules = set(json.loads(done.stderr))
    assert not {"torch", "transformers", "numpy", "rich", "yaml"} & modules


def test_mending_moves_the_cursor():
    environ = {"COMP_WORDS": "ftplan\nplan\n--model\n=\nQw", "COMP_CWORD": "4"}
    completing.mend_equals_signs(environ)
    assert environ == {"COMP_WORDS": "ftplan\nplan\n--model\nQw", "COMP_CWORD": "3"}
