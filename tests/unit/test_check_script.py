"""The command that runs all checks: how it comes by a browser."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("check_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("FTPLAN_CHROMIUM", raising=False)
    return module


@pytest.fixture
def machine(script, monkeypatch):
    """Provide a browser on a machine with these programs; returns the commands that ran."""

    def provide(*programs, root=True, code=0):
        ran = []

        def run(command, **options):
            ran.append(command)
            return subprocess.CompletedProcess(command, code)

        monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
        monkeypatch.setattr(script.os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(script.subprocess, "run", run)
        script.provide_browser()
        return ran

    return provide


@pytest.mark.parametrize("program", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_that_is_there_is_taken(machine, capsys, program):
    assert machine(program, "apt-get") == []
    assert capsys.readouterr().out == ""


def test_a_browser_that_is_named_is_taken(machine, monkeypatch):
    monkeypatch.setenv("FTPLAN_CHROMIUM", "/opt/chrome")
    assert machine("apt-get") == []


def test_root_installs_one_and_says_so(machine, capsys):
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"]
    assert machine("apt-get") == [["apt-get", "update", "-q"], install]
    assert "no Chromium here: apt-get install" in capsys.readouterr().out


@pytest.mark.parametrize(("programs", "root"), [(("apt-get",), False), ((), True)])
def test_others_are_told_what_to_install(machine, capsys, programs, root):
    assert machine(*programs, root=root) == []
    assert "install one, or name it in FTPLAN_CHROMIUM" in capsys.readouterr().out


def test_an_installation_that_fails_is_told(machine, capsys):
    assert machine("apt-get", code=100) == [["apt-get", "update", "-q"]]
    assert "the tests of pages have no browser" in capsys.readouterr().err
