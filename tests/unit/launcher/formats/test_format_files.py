import os
from pathlib import Path

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.files import MOST_FILES, Files, is_file, referred


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a/b/train.yaml", "a/b/ds.json", "a/ds.json", "ds.json", "a/shared.json", "top.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"at": "' + name + '"}' if name.endswith("json") else "a: 1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/here.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("ds.json", "a/b/ds.json"),
        ("./ds.json", "a/b/ds.json"),
        ("../ds.json", "a/ds.json"),
        ("shared.json", "a/shared.json"),
        ("top.json", "top.json"),
        ("a/ds.json", "a/ds.json"),
        ("here.json", "elsewhere/here.json"),
        ("missing.json", "a/b/missing.json"),
        ("x" * 4000, "a/b/" + "x" * 4000),
        ("a\0b", "a/b/a\0b"),
    ],
)
def test_a_reference_is_looked_for_beside_the_file_and_above(tree, reference, found):
    for base in (tree / "a/b/train.yaml", tree / "a/b"):
        assert os.path.normpath(referred(reference, base)) == str(tree / found)


def test_an_absolute_reference_is_itself(tree):
    assert referred("/etc/hosts", tree) == Path("/etc/hosts")


def test_a_working_folder_that_is_gone(tree, monkeypatch):
    gone = tree / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert referred("missing.json", tree / "a/b/train.yaml") == tree / "a/b/missing.json"


def test_a_circle_of_links(tmp_path):
    (tmp_path / "x").symlink_to("x")
    assert not is_file(tmp_path / "x/y")
    assert referred("y.json", tmp_path / "x" / "train.yaml")


def test_documents_are_read_once(tree):
    files = Files()
    first = files.document(tree / "ds.json", asked_by="a.yaml")
    (tree / "ds.json").unlink()
    assert files.document(tree / "ds.json") is first
    assert files.read == [str(tree / "ds.json")]


def test_modules_are_read_once_too(tree):
    (tree / "train.py").write_text("x = 1")
    files = Files()
    assert files.module(tree / "train.py") == files.module(tree / "train.py") == "x = 1"


def test_texts_take_the_place_of_files(tree):
    new = tree / "a/b/new.json"
    files = Files({new: "{}"})
    assert files.find("new.json", tree / "a/b/train.yaml") == new
    assert files.document(new).data == {}


def test_a_script_that_comes_again(tree):
    files = Files()
    files.text(tree / "ds.json")
    with pytest.raises(ConfigFileError, match=r"named twice, the second time in b\.sh"):
        files.text(tree / "ds.json", asked_by="b.sh")


def test_too_many_files(tree):
    files = Files({Path(f"{place}.json"): "{}" for place in range(MOST_FILES + 1)})
    for place in range(MOST_FILES):
        files.document(Path(f"{place}.json"))
    with pytest.raises(ConfigFileError, match="more than 16 files"):
        files.document(Path(f"{MOST_FILES}.json"))


@pytest.mark.parametrize("name", ["/etc/passwd", "secret", "secret.txt", "model.safetensors", ".env"])
def test_what_a_configuration_names_is_opened_only_if_it_is_one(tree, monkeypatch, name):
    (tree / "secret").write_text("a: 1")
    monkeypatch.setattr(os, "open", None)
    files = Files()
    with pytest.raises(ConfigFileError, match=r"named in train.yaml\) is not read") as raised:
        files.document(files.find(name, tree / "a/b/train.yaml"), asked_by="train.yaml")
    assert ".json" in raised.value.hint
    assert not files.read
