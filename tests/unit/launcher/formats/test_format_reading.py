import os
from pathlib import Path

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.reading import LARGEST_FILE, as_in, read_config, shown


def test_marks_and_line_ends_are_those_of_unix(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\rc: \xc3\xbc\n")
    assert read_config(path) == "a: 1\nb: 2\nc: ü\n"


def test_the_largest_file_is_read_and_no_larger_one(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * LARGEST_FILE)
    assert len(read_config(path)) == LARGEST_FILE
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(ConfigFileError, match="is larger than 256 KiB") as raised:
        read_config(path)
    assert raised.value.hint


@pytest.mark.parametrize(("content", "told"), [(b"\xff", "no UTF-8 text"), (b"a\0", "a null character")])
def test_what_is_no_text_is_refused(tmp_path, content, told):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigFileError, match=told):
        read_config(path)


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")

    def refuse(*_):
        raise AssertionError("opened")

    monkeypatch.setattr(os, "open", refuse)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(ConfigFileError, match="no regular file"):
            read_config(path)


@pytest.mark.parametrize(
    ("name", "told"),
    [("a\0b", "no file has such a name"), ("x" * 4000, "File name too long"), ("missing", "No such file")],
)
def test_names_of_no_file(tmp_path, name, told):
    with pytest.raises(ConfigFileError, match=told):
        read_config(tmp_path / name)


def test_a_file_that_cannot_be_read_although_it_is_one():
    with pytest.raises(ConfigFileError, match="cannot read /proc/self/mem"):
        read_config(Path("/proc/self/mem"))


def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "a").write_text("a: 1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("a", ".", "missing", "/proc/self/mem"):
        try:
            read_config(tmp_path / name)
        except ConfigFileError:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_who_asked_is_told(tmp_path):
    with pytest.raises(ConfigFileError, match=r"missing.json \(named in a\?b.yaml\)"):
        read_config(tmp_path / "missing.json", asked_by="a\nb.yaml")


def test_shown_names_are_short_and_harmless():
    assert shown("a\x1b[31m\nb") == "a?[31m?b"
    assert len(shown("x" * 4000)) == 200


@pytest.mark.parametrize("content", [b"a: 1\nb: 2\n", b"a: 1\r\nb: 2\r\n", b"\xef\xbb\xbfa: 1\r\n", b""])
def test_what_is_written_ends_its_lines_as_before(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert as_in(path, read_config(path)).encode() == content
    assert as_in(tmp_path / "new", "a\n") == "a\n"
