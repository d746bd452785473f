"""What a terminal, a pipe or a full disk does to the output."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

PLAN = [sys.executable, "-m", "ftplan", "plan", "--model", "Qwen-7B", "--gpus", "2x24GB"]


CLEAN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}


def test_a_terminal_without_unicode_gets_bars_in_ascii():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(PLAN, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0
    assert "load       14.52 GiB  ####" in done.stdout
    assert "tokens/s | step" in done.stdout
    assert "\\" not in done.stdout
    assert not done.stderr


def in_a_window(command, width, **environment):
    """What ``command`` shows in a real terminal of ``width`` columns, line by line."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {**CLEAN, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env) as process:
        os.close(side)
        shown = b""
        with suppress(OSError):  # which is how a terminal ends
            while part := os.read(main, 65536):
                shown += part
        os.close(main)
        assert process.wait() == 0
    return shown.decode("utf-8").replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("width", [40, 60, 100])
@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_window_without_colour_has_no_escape_codes(width, environment):
    lines = in_a_window(PLAN, width, **environment)
    assert not any("\x1b" in line for line in lines)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Qwen-7B on 2x24GB")
    assert any(line.startswith("fits: needs") for line in lines[:5])


def test_a_window_has_colours():
    assert any("\x1b[1;32mfits" in line for line in in_a_window(PLAN, 100))


@pytest.mark.parametrize(("forced", "codes"), [({}, False), ({"FORCE_COLOR": "1"}, True)], ids=["pipe", "forced"])
def test_a_pipe_has_colours_only_where_they_are_forced(forced, codes):
    done = subprocess.run(PLAN, capture_output=True, text=True, env={**CLEAN, **forced}, check=True)
    assert ("\x1b" in done.stdout) is codes


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
