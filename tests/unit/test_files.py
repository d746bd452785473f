import os
import subprocess
import sys

import pytest

from ftplan import files

WRITER = """\
import sys
from pathlib import Path
from ftplan.files import append_line
for number in range(200):
    append_line(Path(sys.argv[1]), f"{sys.argv[2]} {number} " + "x" * 500)
"""


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    files.write_atomic(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    partial, folder = tmp_path / ".partial", tmp_path / "folder"
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "weights").write_text("w")
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path, folder.exists())))
    files.publish(partial, folder)
    before = [path for path, has_name in synced if not has_name]
    assert sorted(before) == [partial, partial / "deep", partial / "deep" / "weights"]
    assert synced[len(before) :] == [(tmp_path, True)]
    assert (folder / "deep" / "weights").read_text() == "w"


def test_lines_are_appended_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "deep" / "lines"
    files.append_line(path, "ä")
    files.append_line(path, "b")
    assert path.read_text() == "ä\nb\n"


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    path = tmp_path / "lines"
    path.write_text("whole\ntor")
    files.append_line(path, "next")
    assert path.read_text() == "whole\ntor\nnext\n"


def test_a_torn_line_is_ended_once(tmp_path):
    path = tmp_path / "deep" / "lines"
    files.end_line(path)
    assert path.read_text() == ""
    path.write_text("whole\ntor")
    files.end_line(path)
    files.end_line(path)
    assert path.read_text() == "whole\ntor\n"


def test_lines_of_several_writers_do_not_mix(tmp_path):
    path = tmp_path / "lines"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    told = sorted(line.split()[:2] for line in path.read_text().splitlines())
    assert told == sorted([name, str(number)] for name in "ab" for number in range(200))
