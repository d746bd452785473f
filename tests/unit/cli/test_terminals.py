"""What a terminal, a pipe or a full disk does to the output."""

import os
import subprocess
import sys

import pytest

PLAN = [sys.executable, "-m", "ftplan", "plan", "--model", "Qwen-7B", "--gpus", "2x24GB"]


def test_a_terminal_without_unicode_gets_characters_spelled_out():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(PLAN, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0
    assert "\\u2588" in done.stdout
    assert not done.stderr


def test_a_pipe_whose_reader_left_is_no_failure():
    with subprocess.Popen(PLAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait() == 0
    assert complaint == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
def test_a_full_disk_is_one_error():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(PLAN, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write the output")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [PLAN, [*PLAN[:3], "models"], [*PLAN[:3], "gpus"]], ids=lambda given: given[3])
def test_a_narrow_pipe_is_respected(command):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "60"}, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 60
