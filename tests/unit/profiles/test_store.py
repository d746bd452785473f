import os
from pathlib import Path

import pytest
from kept_parts import calibration, run

from ftplan.errors import InputError
from ftplan.profiles import store
from ftplan.profiles.calibration import Kept
from ftplan.profiles.data_folder import data_folder


@pytest.fixture
def folder():
    data_folder().mkdir(parents=True)
    return data_folder()


def test_nothing_is_kept_at_first_and_nothing_is_made():
    assert store.load() == Kept()
    assert not data_folder().exists()


def test_what_is_kept_comes_back():
    made, runs = calibration(context_bytes=5, matrix_dtype="bf16"), [run(), run(ranks=2)]
    store.keep_calibration(made)
    for one in runs:
        store.keep_run(one)
    assert store.load() == Kept((made,), tuple(runs))


def test_a_later_calibration_takes_the_place_of_the_same_one_only():
    first, later = calibration(context_bytes=5), calibration(context_bytes=6, at="2026-11-23T10:00:00+00:00")
    other = calibration("cpu", context_bytes=7)
    for one in (first, other, later):
        store.keep_calibration(one)
    assert store.load().calibrations == (other, later)
    assert store.load().newest("H100-SXM") == later
    assert store.load().newest("A100-80GB") is None


@pytest.mark.parametrize("part", [1, 5, 12, 100])
def test_a_line_that_a_kill_cut_short_is_passed_by(folder, part):
    store.keep_run(run())
    file = folder / "runs.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:part])
    assert store.load().runs == (run(),)
    store.keep_run(run(ranks=4))
    assert [one.ranks for one in store.load().runs] == [1, 4]


@pytest.mark.parametrize("text", ["hello\n", '{"run_id": 3}\n', '{"a": 1}\n', "\x00\xff"])
@pytest.mark.parametrize("name", ["calibration.json", "runs.jsonl"])
def test_a_foreign_file_is_named_with_the_way_out(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=name) as error:
        store.load()
    assert "ftplan calibrate --reset" in error.value.hint
    assert [path.name for path in store.reset()] == [name]
    assert store.load() == Kept()


def test_a_folder_in_the_place_of_a_file_is_an_error_of_the_user(folder):
    (folder / "runs.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        store.load()
    with pytest.raises(InputError, match="cannot remove"):
        store.reset()


def test_only_the_newest_runs_are_read():
    for ranks in range(1, 101):
        store.keep_run(run(ranks=ranks))
    read = [one.ranks for one in store.load().runs]
    assert read == list(range(101 - len(read), 101))
    assert 10 < len(read) < 100


def test_reset_of_nothing_removes_nothing():
    assert store.reset() == ()


def test_where_the_data_are(monkeypatch, tmp_path):
    assert str(data_folder()) == os.environ["FTPLAN_DATA"]
    monkeypatch.delenv("FTPLAN_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "ftplan"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".local/share/ftplan"


def test_who_has_no_home_has_nothing_and_is_told_when_something_is_to_be_kept(monkeypatch):
    def no_home():
        raise RuntimeError

    for name in ("FTPLAN_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert store.load() == Kept()
    with pytest.raises(InputError, match="no home folder"):
        store.keep_run(run())


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTPLAN_DATA", str(tmp_path / "file" / "folder"))
    assert store.load() == Kept()
    for keep in (store.require_writable, lambda: store.keep_calibration(calibration()), lambda: store.keep_run(run())):
        with pytest.raises(InputError, match="cannot write") as error:
            keep()
        assert "FTPLAN_DATA" in error.value.hint


@pytest.mark.parametrize("rate", ["0", "-1.5", "NaN", "Infinity", '"fast"'])
def test_a_rate_that_nothing_has_is_foreign(folder, rate):
    store.keep_calibration(calibration(memory_bytes_per_second=3.5e12))
    file = folder / "calibration.json"
    file.write_text(file.read_text().replace("3500000000000.0", rate))
    with pytest.raises(InputError, match=r"calibration\.json"):
        store.load()
