"""What a run or a folder holds to go on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import run_folder

from ftplan import cli
from ftplan.cli import run_command
from ftplan.errors import InputError
from ftplan.files import write_atomic
from ftplan.launcher import engine
from ftplan.launcher.job import Source
from ftplan.launcher.records import RunDir
from ftplan.workflows.trained import find_trained


def adapter(folder: Path, base: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_result_of_a_run_comes_first_with_the_tokenizer_beside_it(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], "finished", saved=(20,))
    final = adapter(run.final)
    found = find_trained(run.root)
    assert (found.folder, found.is_adapter, found.note) == (final, True, "")
    assert found.base == Source(kind="config", location="demo/model")
    assert found.tokenizer == Source(kind="folder", location="demo/model")
    (final / "tokenizer_config.json").write_text("{}")
    assert find_trained(run.root).tokenizer.location == str(final)


def test_then_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], "failed", saved=(20, 40))
    found = find_trained(run.root)
    assert found.folder == run.checkpoints / "checkpoint-40"
    assert "checkpoint of step 40" in found.note
    # What is damaged is none.
    (run.checkpoints / "checkpoint-40" / "adapter_model.safetensors").write_bytes(b"short")
    assert find_trained(run.root).folder == run.checkpoints / "checkpoint-20"


def test_a_rehearsal_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], "finished")
    random = engine.load_job(run).model_copy(update={"model": Source(kind="random", location="architecture")})
    write_atomic(run.job, random.model_dump_json())
    with pytest.raises(InputError, match="was a rehearsal"):
        find_trained(run.root)


def test_a_run_with_nothing_yet(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], "failed")
    with pytest.raises(InputError, match="no trained weights yet"):
        find_trained(run.root)


def test_random_weights_that_were_written_are_taken(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], "finished")
    adapter(run.final)
    base = model(run.root / "base")
    assert find_trained(run.root).base == Source(kind="folder", location=str(base))


def zero3(run: RunDir) -> None:
    job = json.loads(run.job.read_text())
    job["config"]["sharding"] = "zero3"
    run.job.write_text(json.dumps(job))


def test_random_weights_of_zero3_are_gone(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], "finished")
    zero3(run)
    adapter(run.final)
    with pytest.raises(InputError, match="cannot be drawn again"):
        find_trained(run.root)
    base = model(tmp_path / "base")
    assert find_trained(run.root, str(base)).base == Source(kind="folder", location=str(base))
    (run.final / "adapter_config.json").unlink()
    assert find_trained(run.root).base is None


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    assert find_trained(adapter(tmp_path / "1", str(base))).base == Source(kind="folder", location=str(base))
    assert find_trained(adapter(tmp_path / "2", "Qwen/Qwen2.5-7B")).base == Source(
        kind="hub", location="Qwen/Qwen2.5-7B"
    )
    assert find_trained(adapter(tmp_path / "3", str(tmp_path / "gone"))).base is None
    assert find_trained(adapter(tmp_path / "4")).base is None
    whole = find_trained(base)
    assert (whole.is_adapter, whole.base) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", "gone", "--out", "new"), "gone is no folder"),
        (("merge", "empty", "--out", "new"), "holds no run (job.json), no adapter"),
        (("merge", "model", "--out", "new"), "is a whole model: there is nothing to merge"),
        (("merge", "adapter", "--out", "new"), "nothing says which model the adapter belongs to"),
        (("merge", "adapter", "--base", "empty", "--out", "new"), "holds no config.json"),
        (("merge", "adapter", "--base", "./gone", "--out", "new"), "there is no folder gone"),
        (("merge", "adapter", "--base", "model", "--out", "new", "--dtype", "int8"), "unknown dtype 'int8'"),
        (("merge", "adapter", "--base", "model", "--out", "new", "--max-ram", "much"), "'much' is no size"),
        (("merge", "adapter", "--base", "model", "--out", "empty"), "already exists"),
        (("predict", "adapter", "--data", "gone.jsonl"), "nothing says which model the adapter belongs to"),
        (("predict", "model", "--data", "gone.jsonl"), "cannot read"),
        (("predict", "model", "--data", "rows.jsonl", "--metrics", "bleu"), "unknown metric 'bleu'"),
        (("predict", "model", "--data", "rows.jsonl", "--data-format", "csv"), "form: Input should be 'auto'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_command, "require_training_libraries", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    model(tmp_path / "model")
    adapter(tmp_path / "adapter")
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    assert cli.run(list(arguments)) == 2
    told = capsys.readouterr().err
    assert message in told.replace("\n", " ")
    assert "hint: " in told
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*.partial"))
