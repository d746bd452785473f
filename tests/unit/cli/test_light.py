"""Commands that start no training import nothing heavy, proven in a process of their own."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "datasets",
    "numpy",
    "tokenizers",
    "safetensors",
    "gradio",
    "requests",
    "huggingface_hub",
    "httpx",
)

PROGRAM = """\
import json, sys
from ftplan.cli import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def modules_after(*arguments):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB"),
        ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--json"),
        ("estimate", "--model", "Qwen-7B", "--gpus", "1x24GB"),
        ("estimate", "--model", "Qwen-7B", "--gpus", "1x24GB", "--json"),
        ("run", "--demo", "--dry-run"),
        ("calibrate", "--show"),
        ("models",),
        ("gpus",),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments):
    code, modules = modules_after(*arguments)
    assert code == 0
    assert "ftplan" in modules
    assert not set(HEAVY) & set(modules)


def test_planning_needs_neither_yaml_nor_a_network_library():
    _, modules = modules_after("plan", "--model", "Qwen-7B", "--gpus", "2x24GB")
    assert not {"yaml", "urllib3", "http", "ssl"} & set(modules)


def test_the_proof_would_notice():
    """The same look at sys.modules, with something heavy in it."""
    program = PROGRAM.replace(
        "code = run(sys.argv[1:])", "import wave as numpy; sys.modules['numpy'] = numpy; code = 0"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "numpy" in json.loads(done.stderr.splitlines()[-1])[1]
