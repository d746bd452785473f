"""Where a trace runs and what is kept of it."""

import importlib.util
import json

import pytest
from small_traces import LLAMA, settings

from ftplan.errors import InputError
from ftplan.estimators.trace import running
from ftplan.estimators.trace.running import cache_folder, require_libraries, traced


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FTPLAN_CACHE", str(tmp_path))
    return cache_folder()


def test_the_second_time_it_is_read(kept, monkeypatch):
    first = traced(settings())
    assert len(list(kept.iterdir())) == 1
    monkeypatch.setattr(running, "_here", lambda _: pytest.fail("traced again"))
    assert traced(settings()) == first


@pytest.mark.parametrize("other", [{"seq_len": 64}, {"rank": 1}, {"capability": (8, 0)}, {"steps": 3}])
def test_whatever_determines_it_is_in_the_name(other):
    assert running._key(settings(**other)) != running._key(settings())


def test_versions_are_in_the_name(monkeypatch):
    before = running._key(settings())
    monkeypatch.setattr(running, "_versions", lambda: {"torch": "0"})
    assert running._key(settings()) != before


def test_a_broken_file_is_traced_again(kept):
    first = traced(settings())
    file = next(kept.iterdir())
    file.write_text(json.dumps({"peak_allocated_bytes": 1}))
    assert traced(settings()) == first


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTPLAN_CACHE", str(tmp_path / "file"))
    assert traced(settings()).peak_allocated_bytes > 0
    assert "not cached" in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "peft") else object())
    with pytest.raises(InputError, match="torch, peft") as error:
        require_libraries(settings())
    assert "ftplan[train]" in error.value.hint


def test_liger_is_in_no_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else object())
    with pytest.raises(InputError) as error:
        require_libraries(settings(kernels="liger"))
    assert error.value.hint.startswith("pip install liger-kernel,")


def test_a_child_gives_the_same_answer(kept):
    del kept
    assert running._in_child(settings()) == running._here(settings())


def test_what_a_library_raises_is_told_as_one_line():
    with pytest.raises(InputError, match="the trace failed") as error:
        running._here(settings({**LLAMA, "num_attention_heads": 3}))
    assert "analytic" in error.value.hint


def test_a_users_mistake_in_a_child_is_told_as_such():
    with pytest.raises(InputError, match="no architecture"):
        running._in_child(settings({**LLAMA, "model_type": "baichuan"}))
