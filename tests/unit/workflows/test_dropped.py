"""Files by their text alone: what is dropped into a page."""

from __future__ import annotations

import builtins
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from checks import LLAMAFACTORY

from ftplan.errors import ConfigFileError, FtplanError, InputError, UnknownNameError
from ftplan.launcher.formats.files import MOST_FILES
from ftplan.launcher.formats.reading import LARGEST_FILE
from ftplan.results import to_jsonable
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

SCRIPT = """from trl import SFTConfig, SFTTrainer
trainer = SFTTrainer(model="Qwen/Qwen2.5-0.5B", args=SFTConfig(per_device_train_batch_size=2, max_length=512))
trainer.train()
"""
AXOLOTL = {
    "base_model": "Qwen/Qwen2.5-0.5B",
    "micro_batch_size": 1,
    "sequence_len": 512,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw_torch",
    "deepspeed": "deepspeed_configs/zero1.json",
}
OFFLOADED = json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})
TORCHTUNE = {
    "model": {"_component_": "torchtune.models.qwen2_5.qwen2_5_0_5b"},
    "tokenizer": {"max_seq_len": 512},
    "optimizer": {"_component_": "torch.optim.AdamW"},
    "loss": {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss"},
    "batch_size": 3,
    "dtype": "bf16",
}
TRL = "trl sft --model_name_or_path meta-llama/Llama-3.1-8B --per_device_train_batch_size {} --max_length 4096 --bf16"


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


def looked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are opened, listed or looked at from here on."""
    seen: list[str] = []

    def watch(module: object, name: str) -> None:
        real = getattr(module, name)

        def watched(path: object = ".", *args: object, **kwargs: object) -> object:
            seen.append(os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for name in ("stat", "lstat", "open", "listdir", "scandir", "access", "readlink"):
        watch(os, name)
    watch(builtins, "open")
    watch(io, "open")
    return seen


def answer(texts: Mapping[str, str], gpus: str = "2x24GB", **options: str) -> object:
    """All that a stranger is told."""
    try:
        checked = dropped.check(texts, gpus, hosted=True, **options)
    except FtplanError as error:
        return type(error), error.message, error.hint
    fixes = []
    for fix in checked.check.fixes:
        try:
            fixes.append(dropped.fixed(checked, fix))
        except InputError as error:
            fixes.append({"": error.message})
    return to_jsonable(checked.check), fixes


NAMING: dict[str, dict[str, str]] = {
    "python": {"run.sh": "python secret.py --model_name_or_path Qwen/Qwen2.5-0.5B --learning_rate 1e-5\n"},
    "python alone": {"run.sh": "python secret.py\n"},
    "script": {"run.sh": "bash secret.sh\n"},
    "module": {"main.py": SCRIPT.replace("trainer.train()", "import secret")},
    "axolotl": {"train.yaml": yaml.safe_dump({**AXOLOTL, "deepspeed": "zero1.json"})},
    "torchtune": {"run.sh": "tune run full_finetune_single_device --config secret\n"},
    "accelerate": {"run.sh": "accelerate launch --config_file secret.yaml secret.py --learning_rate 1e-5\n"},
    "deepspeed": files(deepspeed="secret.json"),
    "itself": {"run.sh": TRL.format(16)},
    "model": {"run.sh": TRL.format(16).replace("meta-llama", "./models")},
    "peft's targets": {"run.sh": TRL.format(16).replace("meta-llama", "./models") + " --use_peft"},
}


@pytest.mark.parametrize("texts", NAMING.values(), ids=NAMING)
def test_what_the_server_has_makes_no_difference(
    texts: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own files of the names that are named, and of those that were dropped, are not even looked at."""
    bare, full = tmp_path / "bare", tmp_path / "full"
    bare.mkdir()
    for folder in (full, full / "models/Llama-3.1-8B"):
        folder.mkdir(parents=True)
    others = {
        "secret.py": SCRIPT,
        "secret.sh": TRL.format(1),
        "run.sh": TRL.format(99).replace("4096", "128"),
        "secret.json": OFFLOADED,
        "zero1.json": OFFLOADED,
        "secret.yaml": yaml.safe_dump(TORCHTUNE),
        "models/Llama-3.1-8B/config.json": '{"model_type": "llama"}',
    }
    for name, text in others.items():
        (full / name).write_text(text)
    monkeypatch.chdir(bare)
    without = answer(texts)
    monkeypatch.chdir(full)
    with monkeypatch.context() as watching:
        seen = looked_for(watching)
        beside = answer(texts)
    assert beside == without
    names = {Path(name).name for name in (*others, *texts)}
    assert [path for path in seen if Path(path).name in names or str(tmp_path) in path] == []
    assert str(tmp_path) not in repr(beside)


@pytest.mark.parametrize("script", ["run.sh", "job.slurm"])
def test_a_dropped_script_is_mended_as_it_was_dropped(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "# mine\n" + TRL.format(64) + " --use_peft --gradient_checkpointing\n"
    for there in (False, True):
        if there:
            (tmp_path / script).write_text("# the server's\n" + TRL.format(64) + "\n")
        checked = dropped.check({script: text}, "1x24GB", hosted=True)
        fix = next(fix for fix in checked.check.fixes if any(change.file == script for change in fix.changes))
        mended = dropped.fixed(checked, fix)
        assert mended[script].startswith("# mine\n")
        assert mended[script] != text
        assert checked.check.files == (script,)


def test_a_training_script_is_read_alone_and_beside_the_one_that_starts_it() -> None:
    alone = dropped.check({"train.py": SCRIPT}, "1x24GB").check
    started = dropped.check(
        {"train.py": SCRIPT, "run.sh": "torchrun --nproc_per_node 1 src/train.py\n"}, "1x24GB"
    ).check
    assert alone.config is not None
    assert started.config is not None
    assert alone.config.micro_batch == started.config.micro_batch == 2
    assert (alone.files, started.files) == (("train.py",), ("run.sh", "train.py"))


def test_a_script_that_trains_otherwise_is_told_so() -> None:
    with pytest.raises(ConfigFileError, match=r"loop\.py trains by a loop of its own"):
        dropped.check({"loop.py": "for step in range(9): print(step)\n"}, "1x24GB")


def test_a_dropped_file_is_taken_before_the_packages_own() -> None:
    texts = {"train.yaml": yaml.safe_dump(AXOLOTL)}
    packaged = dropped.check(texts, "2x24GB").check.config
    own = dropped.check({**texts, "zero1.json": OFFLOADED}, "2x24GB").check.config
    assert packaged is not None
    assert own is not None
    assert packaged.sharding == "zero1"
    assert (own.sharding, own.offload) == ("zero3", "optimizer")


def test_torchtunes_name_for_a_file_means_the_dropped_one() -> None:
    command = {"run.sh": "tune run full_finetune_single_device --config my\n"}
    checked = dropped.check({**command, "my.yaml": yaml.safe_dump(TORCHTUNE)}, "1x24GB").check
    assert checked.config is not None
    assert checked.config.micro_batch == 3
    with pytest.raises(ConfigFileError, match="inside torchtune's package"):
        dropped.check(command, "1x24GB")


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
    ("mention", "is_named"),
    [
        ("configs/train.yaml", True),
        ("--config=train.yaml", True),
        ("'train.yaml'", True),
        ("see train.yaml.", True),
        ("mytrain.yaml", False),
        ("my-train.yaml", False),
        ("old.train.yaml", False),
        ("train.yaml.bak", False),
        ("train.yaml_old", False),
        ("mytrain.yaml train.yaml", True),
    ],
)
def test_a_file_is_named_by_its_whole_name(mention: str, is_named: bool) -> None:
    texts = {**files(), "other.yaml": f"# {mention}\na: 1\n"}
    assert dropped._main(texts) == (["other.yaml"] if is_named else ["train.yaml", "other.yaml"])


def test_a_name_with_a_space_is_a_name() -> None:
    assert dropped._main({"my train (1).yaml": "a: 1", "run.sh": "axolotl train 'my train (1).yaml'"}) == ["run.sh"]


def test_no_more_files_than_a_training_has() -> None:
    many = [(f"{place}.yaml", b"a: 1") for place in range(MOST_FILES + 1)]
    assert len(dropped.texts_of(many[:-1])) == MOST_FILES
    for refused in (lambda: dropped.texts_of(many), lambda: dropped.check({name: "" for name, _ in many}, "1x24GB")):
        with pytest.raises(ConfigFileError, match="more than 16 files") as raised:
            refused()
        assert raised.value.hint


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigFileError, match=r"two of the files are called ds\.json") as raised:
        dropped.texts_of([("a/ds.json", b"{}"), ("train.yaml", b"a: 1"), ("b/ds.json", b"{}")])
    assert "another name" in raised.value.hint
    assert dropped.texts_of([("a/ds.json", b"{}"), ("x.yaml", b"a: 1\r\n")]) == {"ds.json": "{}", "x.yaml": "a: 1\n"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("x" * (LARGEST_FILE + 1), "larger than"), ("é" * LARGEST_FILE, "larger than"), ("a\0b", "null character")],
)
def test_what_is_pasted_is_no_larger_than_a_file(text: str, said: str) -> None:
    with pytest.raises(ConfigFileError, match=said):
        dropped.pasted(text)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(ConfigFileError, match="no UTF-8 text"):
        dropped.pasted("a: \ud800")


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
