"""Files by their text alone: what is dropped into a page."""

from __future__ import annotations

import builtins
import io
import json
import os
from pathlib import Path

import pytest
import yaml
from checks import LLAMAFACTORY

from ftplan.errors import ConfigFileError, InputError, UnknownNameError
from ftplan.verdicts import Verdict
from ftplan.workflows import checking, dropped
from ftplan.workflows.checking import Asked

DEEPSPEED = json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}})
LARGE = {
    **LLAMAFACTORY,
    "model_name_or_path": "meta-llama/Llama-3.1-8B",
    "finetuning_type": "full",
    "deepspeed": "examples/deepspeed/ds.json",
    "cutoff_len": 4096,
    "per_device_train_batch_size": 4,
}


def files(**config: object) -> dict[str, str]:
    return {"train.yaml": yaml.safe_dump({**LLAMAFACTORY, **config})}


def test_the_verdict_is_that_of_the_command(tmp_path: Path) -> None:
    texts = {"train.yaml": yaml.safe_dump({**LARGE, "deepspeed": "ds.json"}), "ds.json": DEEPSPEED}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    on_disk = checking.check(Asked(words=[str(tmp_path / "train.yaml")], gpus="4x24GB")).check
    alone = dropped.check(texts, "4x24GB").check
    assert alone.verdict is on_disk.verdict is Verdict.OOM
    assert (alone.config, alone.estimate) == (on_disk.config, on_disk.estimate)
    assert [fix.fields for fix in alone.fixes] == [fix.fields for fix in on_disk.fixes]
    assert alone.files == ("train.yaml", "ds.json")


def test_a_reference_means_the_file_of_that_name_wherever_it_lay() -> None:
    checked = dropped.check({"train.yaml": yaml.safe_dump(LARGE), "ds.json": DEEPSPEED}, "4x24GB")
    assert checked.check.config is not None
    assert checked.check.config.sharding == "zero2"


def test_a_file_that_is_named_and_missing_is_asked_for() -> None:
    with pytest.raises(ConfigFileError, match=r"ds\.json .*is not among the files") as raised:
        dropped.check({"train.yaml": yaml.safe_dump(LARGE)}, "4x24GB")
    assert "train.yaml" in raised.value.hint


@pytest.mark.parametrize("reference", ["/etc/passwd.json", "../../secret.json", "~/x.yaml", "file:///etc/x.json"])
def test_nothing_on_disk_is_opened(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beside, above and by their whole path are there, and are not looked at."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for folder in (tmp_path, inner):
        (folder / "secret.json").write_text('{"zero_optimization": {"stage": 3}}')
    monkeypatch.chdir(inner)
    dropped.check(files(), "1x24GB", hosted=True)  # loads what is packaged
    opened: list[str] = []

    def watched(path: object, *args: object, **kwargs: object) -> object:
        opened.append(str(path))
        raise PermissionError(13, "no", str(path))

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(io, "open", watched)
    monkeypatch.setattr(os, "open", watched)
    with pytest.raises(ConfigFileError, match="not among the files"):
        dropped.check(files(deepspeed=reference), "1x24GB", hosted=True)
    assert opened == []


@pytest.mark.parametrize("model", ["/etc/hostname", "./here", "nobody/has-this", "~/model", "../../x"])
def test_a_hosted_page_looks_at_no_folder_and_asks_no_hub(model: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown model"):
        dropped.check(files(model_name_or_path=model), "1x24GB", hosted=True)


def test_somebodys_copy_is_taken_for_its_namesake() -> None:
    checked = dropped.check(files(model_name_or_path="/data/models/Qwen2.5-0.5B"), "1x24GB", hosted=True)
    assert any("taken for" in problem.message for problem in checked.check.problems)


def test_mended_files_say_what_the_fix_says() -> None:
    checked = dropped.check({"train.yaml": yaml.safe_dump(LARGE), "ds.json": DEEPSPEED}, "4x24GB")
    fix = checked.check.fixes[0]
    mended = dropped.fixed(checked, fix)
    assert set(mended) <= {"train.yaml", "ds.json", *fix.new_files}
    again = dropped.check({"train.yaml": yaml.safe_dump(LARGE), "ds.json": DEEPSPEED, **mended}, "4x24GB").check
    assert again.is_sound
    assert again.config is not None
    assert {name: getattr(again.config, name) for name in fix.fields} == dict(fix.fields)


def test_a_script_is_taken_before_the_files_it_names() -> None:
    script = "llamafactory-cli train train.yaml cutoff_len=256\n"
    checked = dropped.check({**files(), "run.sh": script}, "1x24GB")
    assert checked.check.config is not None
    assert checked.check.config.seq_len == 256


@pytest.mark.parametrize(
    ("text", "name"), [('{"a": 1}', "pasted.json"), ("  {\n}", "pasted.json"), ("a: 1", "pasted.yaml")]
)
def test_what_is_pasted_is_of_the_kind_it_looks_like(text: str, name: str) -> None:
    assert dropped.pasted(text) == {name: text}


def test_nothing_is_an_error_with_a_hint() -> None:
    assert dropped.pasted("  \n") == {}
    with pytest.raises(ConfigFileError, match="nothing to check"):
        dropped.check({}, "1x24GB")


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\xff\xfe\x00", "no UTF-8 text"), (b"a\0b", "null character"), (b"x" * 300_000, "larger than")],
)
def test_what_is_no_configuration_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ConfigFileError, match=said):
        dropped.read("x.yaml", data)


def test_names_have_no_folders() -> None:
    assert dropped.read("../../etc/x.yaml", b"a: 1\r\n") == ("x.yaml", "a: 1\n")
    assert dropped.read("C:\\work\\x.yaml", b"")[0] == "x.yaml"


def test_devices_that_are_none_are_an_error() -> None:
    with pytest.raises(InputError):
        dropped.check(files(), "many", hosted=True)
