import zipfile
from pathlib import Path

import pytest

from ftplan.errors import InputError
from ftplan.ui.session import page_folder, uploaded, zipped


def test_an_archive_holds_the_files_and_scripts_can_be_run():
    path = zipped({"train.yaml": "a: 1\n", "launch.sh": "#!/bin/sh\n"}, "../ftplan <x>")
    assert Path(path).name == "..-ftplan--x-.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.read("train.yaml") == b"a: 1\n"
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes == {"train.yaml": 0o644, "launch.sh": 0o755}


def test_each_archive_is_in_a_folder_of_its_own():
    assert zipped({}, "a") != zipped({}, "a")


def test_an_archive_is_packed():
    assert Path(zipped({"a": "x" * 100_000}, "a")).stat().st_size < 2_000


def test_only_what_was_dropped_into_the_page_is_read(tmp_path):
    foreign = tmp_path / "secret.yaml"
    foreign.write_text("a: 1")
    dropped = page_folder() / "train.yaml"
    dropped.write_text("a: 1")
    (page_folder() / "link.yaml").symlink_to(foreign)
    assert uploaded(str(dropped)) == dropped.resolve()
    for path in (
        foreign,
        page_folder() / ".." / "secret.yaml",
        page_folder() / "link.yaml",
        page_folder(),
        Path("/dev/zero"),
    ):
        with pytest.raises(InputError, match="not here any more"):
            uploaded(str(path))
    dropped.unlink()
    with pytest.raises(InputError, match="not here"):
        uploaded(str(dropped))


def test_what_is_kept_for_a_page_is_private():
    assert page_folder().stat().st_mode & 0o077 == 0
