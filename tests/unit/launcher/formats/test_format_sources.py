import pytest

from ftplan.errors import ConfigFileError, UnknownNameError
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.settings import Setting
from ftplan.launcher.formats.sources import opened, overridden

TRAIN = "model_name_or_path: gpt2\nstage: sft\ndo_train: true\nfinetuning_type: lora\ncutoff_len: 64\n"
ZERO3 = '{"zero_optimization": {"stage": 3}}'
ARGUMENTS = "--model_name_or_path gpt2 --stage sft --do_train --finetuning_type lora --learning_rate 1 --lora_rank 4"


@pytest.fixture
def opening(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, framework="", **files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return opened(words, Files(), framework)

    return run


def fields(source, ranks=1):
    return source.understood(ranks).fields


def test_a_file(opening):
    source = opening("train.yaml", train_yaml=TRAIN)
    assert source.format.name == "llamafactory"
    assert (fields(source)["model"], fields(source)["seq_len"]) == ("gpt2", 64)


def test_overrides_beside_a_file(opening):
    source = opening("train.yaml", "cutoff_len=128", "--lora_rank", "4", train_yaml=TRAIN)
    assert (fields(source)["seq_len"], fields(source)["lora_rank"]) == (128, 4)


def test_settings_that_the_user_states(opening):
    source = overridden(opening("train.yaml", train_yaml=TRAIN), {"cutoff_len": Setting("cutoff_len", 32)})
    assert fields(source)["seq_len"] == 32


@pytest.mark.parametrize("order", [("train.yaml", "acc.yaml"), ("acc.yaml", "train.yaml")])
def test_files_beside_one_another(opening, order):
    accelerate = "distributed_type: FSDP\nnum_processes: 4\nnum_machines: 1\nfsdp_config:\n  fsdp_version: 2\n"
    source = opening(*order, train_yaml=TRAIN, acc_yaml=accelerate)
    assert source.format.name == "llamafactory"
    assert (source.shape.per_node, fields(source, 4)["sharding"]) == (4, "fsdp2")


def test_a_file_that_another_names(opening):
    source = opening("train.yaml", train_yaml=TRAIN + "deepspeed: ds.json\n", ds_json=ZERO3)
    assert fields(source, 2)["sharding"] == "zero3"


def test_a_file_named_from_the_folder_above(opening):
    source = opening("sub/train.yaml", sub__train_yaml=TRAIN + "deepspeed: cfg/ds.json\n", cfg__ds_json=ZERO3)
    assert fields(source, 2)["sharding"] == "zero3"


@pytest.mark.parametrize(
    "script",
    [
        "llamafactory-cli train train.yaml",
        "NPROC_PER_NODE=2 FORCE_TORCHRUN=1 llamafactory-cli train train.yaml cutoff_len=64",
        "cd x; python prepare.py; torchrun --nproc_per_node 2 src/train.py train.yaml",
        "bash prepare.sh\nllamafactory-cli train train.yaml",
        "(llamafactory-cli train train.yaml)",
        f"torchrun train_bash.py {ARGUMENTS} --cutoff_len 64",
        "bash inner.sh",
    ],
)
def test_scripts(opening, script):
    files = {"prepare_sh": "wget x\n", "inner_sh": "llamafactory-cli train train.yaml"}
    source = opening("run.sh", run_sh=script, train_yaml=TRAIN, **files)
    assert source.format.name == "llamafactory"
    assert fields(source)["seq_len"] == 64


def test_the_last_training_counts(opening):
    script = "llamafactory-cli train train.yaml cutoff_len=1\nllamafactory-cli train train.yaml cutoff_len=2\necho done"
    assert fields(opening("run.sh", run_sh=script, train_yaml=TRAIN))["seq_len"] == 2


def test_a_command_line(opening):
    source = opening("torchrun", "--nproc_per_node", "8", "train_bash.py", *ARGUMENTS.split())
    assert (source.shape.per_node, fields(source, 8)["lora_rank"]) == (8, 4)


PYTHON = "TrainingArguments(output_dir='x', per_device_train_batch_size=2, learning_rate=1.0)\n"


@pytest.mark.parametrize(
    "words", [("train.py",), ("python", "train.py"), ("run.sh",), ("train.py", "--learning_rate", "2")]
)
def test_a_python_file(opening, words):
    source = opening(*words, train_py=PYTHON, run_sh="python train.py\npython train.py\n")
    assert fields(source)["micro_batch"] == 2


def test_what_a_command_says_takes_the_place_of_the_script(opening):
    assert (
        fields(opening("python", "train.py", "--per_device_train_batch_size", "4", train_py=PYTHON))["micro_batch"] == 4
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("missing.yaml",), "No such file"),
        (("missing.sh",), "No such file"),
        (("missing.py",), "starts no training"),
        (("other.yaml",), "is no framework's training configuration"),
        (("train.yaml", "train.yaml"), "both a training's own file"),
        (("train.yaml", "cutoff_len"), "cannot read"),
        (("a=b.yaml",), "a setting without a file"),
        (("nothing.sh",), "starts no training that is known"),
        (("itself.sh",), "named twice"),
        (("llamafactory-cli", "chat", "train.yaml"), "starts no training"),
        (("llamafactory-cli", "train", "missing.yaml"), "No such file"),
        (("python", "x" * 4000 + ".py", "--a"), "starts no training"),
        (("python", "a\0.py", "--a"), "starts no training"),
        (("bash", "-c", "x"), "starts no training"),
        (
            ("accelerate", "launch", "--config_file", "/etc/passwd", "train_bash.py", "--learning_rate", "1"),
            "is not read",
        ),
        (("",), "starts no training"),
        (("list.json",), "no mapping"),
    ],
)
def test_what_is_refused(opening, words, told):
    files = {"train_yaml": TRAIN, "other_yaml": "kind: Pod", "nothing_sh": "echo", "itself_sh": "bash itself.sh"}
    with pytest.raises(ConfigFileError, match=told):
        opening(*words, list_json="[]", **files)


def test_an_unknown_framework(opening):
    with pytest.raises(UnknownNameError, match="unknown framework 'x'"):
        opening("train.yaml", framework="x", train_yaml=TRAIN)


@pytest.mark.parametrize("library", ["SFTTrainer(model='gpt2')", "SFTConfig(output_dir='x')"])
def test_scripts_of_frameworks_that_are_read_or_not(opening, library):
    """A framework without a format of its own is read as transformers', on which it stands."""
    assert opening("train.py", train_py=library).format.name in ("transformers", "trl")
