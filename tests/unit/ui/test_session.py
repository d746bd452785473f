import zipfile
from pathlib import Path

from ftplan.ui.session import zipped


def test_an_archive_holds_the_files_and_scripts_can_be_run():
    path = zipped({"train.yaml": "a: 1\n", "launch.sh": "#!/bin/sh\n"}, "../ftplan <x>")
    assert Path(path).name == "..-ftplan--x-.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.read("train.yaml") == b"a: 1\n"
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes == {"train.yaml": 0o644, "launch.sh": 0o755}


def test_each_archive_is_in_a_folder_of_its_own():
    assert zipped({}, "a") != zipped({}, "a")
