"""Torch asked in a process of its own; the first test imports it (a few seconds)."""

import json

import pytest

from ftplan.launcher.preflight import environment


def test_torch_tells_of_itself_and_of_modules_that_do_not_import():
    pytest.importorskip("torch")
    torch, problem = environment.ask_torch(["json", "no_such_module"])
    assert problem == ""
    assert torch.version[0].isdigit()
    assert torch.broken == {"no_such_module": "No module named 'no_such_module'"}
    if torch.cuda is None:
        assert torch.devices == ()
        assert torch.error


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("import sys; sys.exit('ImportError: libcudart.so.13')", "ImportError: libcudart.so.13"),
        ("import sys; sys.exit(3)", "its process ended with 3"),
        ("print('hello')", "its answer cannot be read: b'hello\\n'"),
        ("import os; os.abort()", "its process ended with 6"),
    ],
)
def test_a_torch_that_does_not_answer(script, problem, monkeypatch, tmp_path):
    (tmp_path / "silent.py").write_text(script)
    monkeypatch.setattr(environment, "MODULE", "silent")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment.ask_torch() == (None, problem)


def test_a_torch_that_hangs_is_left(monkeypatch, tmp_path):
    (tmp_path / "hanging.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(environment, "MODULE", "hanging")
    monkeypatch.setattr(environment, "LIMIT_SECONDS", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment.ask_torch() == (None, "it did not answer within 0 s")


def test_what_torch_says_is_one_line_of_json():
    told = {"version": "2.13.0", "cuda": "13.0", "devices": [{"name": "a", "capability": [8, 9], "bf16": True}]}
    torch = environment.from_json(environment.Torch, json.dumps(told))
    assert torch.devices[0].capability == (8, 9)
