import json

import pytest
import yaml

from ftplan.errors import CannotExpressError, InputError
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.given import Format, Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import read_back, rendered
from ftplan.profiles.models import hub_id
from ftplan.spec import RunConfig

LF = FORMATS["llamafactory"]


def config(**fields):
    return RunConfig(**{"model": "Qwen/Qwen2.5-7B", "stack": "llamafactory", **fields})


def files_of(target=None, chosen=LF, **fields):
    return rendered(chosen, config(**fields), target or Target())


def test_one_process_is_a_yaml_file_and_a_script():
    files = files_of()
    assert list(files) == ["train.yaml", "launch.sh"]
    assert files["launch.sh"].splitlines()[0] == "#!/usr/bin/env bash"
    assert files["launch.sh"].splitlines()[-1] == 'exec llamafactory-cli train train.yaml "$@"'
    assert all(text.endswith("\n") and "Written by ftplan" in text for text in files.values())


def test_zero_has_a_file_of_deepspeed_s_beside_it():
    files = files_of(Target(per_node=2), sharding="zero2", expandable_segments=True)
    assert json.loads(files["deepspeed.json"])["zero_optimization"]["stage"] == 2
    assert yaml.safe_load(files["train.yaml"])["deepspeed"] == "deepspeed.json"
    assert "export FORCE_TORCHRUN=1\nexport NPROC_PER_NODE=2\n" in files["launch.sh"]


def test_fsdp_has_a_file_of_accelerate_s():
    files = files_of(Target(nodes=2, per_node=8), sharding="fsdp2", sync_each_batch=True, accumulation=2)
    accelerate = yaml.safe_load(files["accelerate.yaml"])
    assert (accelerate["distributed_type"], accelerate["num_machines"], accelerate["num_processes"]) == ("FSDP", 2, 16)
    assert "accelerate launch --config_file accelerate.yaml -m llamafactory.launcher train.yaml" in files["launch.sh"]


def test_several_machines_are_told_to_llamafactory():
    files = files_of(Target(nodes=2, per_node=8), sharding="zero3", expandable_segments=True)
    assert "export NNODES=2\n" in files["launch.sh"]


def test_the_header_names_the_release_that_the_files_are_for():
    assert "for LLaMA-Factory 0.9.3." in files_of(Target(version="0.9.3"))["train.yaml"]


def test_small_numbers_stay_numbers_in_yaml_1_1():
    text = files_of(Target(learning_rate=1e-5))["train.yaml"]
    assert "learning_rate: 1.0e-05\n" in text
    assert yaml.safe_load(text)["learning_rate"] == 1e-5


def test_data_folder_and_epochs_are_the_targets():
    said = yaml.safe_load(files_of(Target(dataset="mine", output_dir="there", epochs=1.0))["train.yaml"])
    assert (said["dataset"], said["output_dir"], said["num_train_epochs"]) == ("mine", "there", 1.0)


def test_a_model_of_the_catalogue_is_loaded_by_its_hub_id():
    said = yaml.safe_load(files_of(model="Qwen-7B")["train.yaml"])
    assert said["model_name_or_path"] == hub_id("Qwen-7B") != "Qwen-7B"


def test_a_folder_is_loaded_from_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    said = yaml.safe_load(files_of(model="mine")["train.yaml"])
    assert said["model_name_or_path"] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("fields", "ranks", "lost"),
    [
        ({"sharding": "hsdp"}, 8, "sharding"),
        ({"adapter_dtype": "bf16"}, 1, "adapter_dtype"),
        ({"stack": "trl"}, 1, "stack"),
        ({"loss_path": "chunked"}, 1, "loss_path"),
        ({"weights_dtype": "fp32"}, 1, "weights_dtype"),
        ({"sharding": "fsdp2", "offload": "optimizer"}, 8, "offload"),
        ({"sharding": "zero2", "offload": "optimizer+params"}, 8, "offload"),
        ({"method": "qlora", "quantization": "nf4", "prepare_kbit": True}, 1, "prepare_kbit"),
    ],
)
def test_what_the_files_cannot_say_is_an_error_that_names_the_field(fields, ranks, lost):
    with pytest.raises(CannotExpressError, match=lost):
        files_of(Target(per_node=ranks), **fields)


def test_fields_without_effect_do_not_have_to_be_said():
    files = files_of(method="full", lora_rank=3, lora_targets="qv", adapter_dtype="bf16", double_quantization=True)
    assert "lora_rank" not in files["train.yaml"]


@pytest.mark.parametrize("sharding", ["none", "ddp", "zero2", "fsdp2"])
def test_what_is_read_back_is_what_was_meant(sharding):
    target = Target(per_node=1 if sharding == "none" else 4)
    meant = config(sharding=sharding, seq_len=512, micro_batch=2, padding=True, accumulation=3)
    said = read_back(LF, target, rendered(LF, meant, target))
    assert RunConfig.model_validate(said) == meant.model_copy(update={"lora_targets": "all-linear"})


@pytest.mark.parametrize("name", ["deepspeed", "accelerate"])
def test_libraries_files_say_a_part(name):
    meant = config(stack="trainer", sharding="zero2", micro_batch=2, accumulation=3)
    files = rendered(FORMATS[name], meant, Target(per_node=8))
    document = next(json.loads(text) for key, text in files.items() if key.endswith(".json"))
    assert document["zero_optimization"]["stage"] == 2
    if name == "deepspeed":
        assert (document["train_batch_size"], document["train_micro_batch_size_per_gpu"]) == (48, 2)


def test_training_arguments_have_no_adapters():
    with pytest.raises(CannotExpressError, match="method") as caught:
        rendered(FORMATS["transformers"], config(stack="trainer"), Target())
    assert "trl" in caught.value.hint


@pytest.mark.parametrize("sharding", ["ddp", "zero3", "fsdp2", "fsdp2-grad-op"])
def test_training_arguments_of_full_fine_tuning(sharding):
    meant = config(stack="trainer", method="full", sharding=sharding, weights_dtype="bf16", micro_batch=2, padding=True)
    files = rendered(FORMATS["transformers"], meant, Target(per_node=4))
    said = json.loads(files["training_args.json"])
    assert (said["bf16"], said["per_device_train_batch_size"]) == (True, 2)
    assert ("deepspeed" in said, "fsdp" in said) == (sharding == "zero3", sharding.startswith("fsdp"))


def test_a_format_that_is_only_read_cannot_be_written():
    read_only = Format("x", "X", "llamafactory", LF.parse, None)
    with pytest.raises(InputError, match="read, not written"):
        rendered(read_only, config(), Target())


def test_json_files_hold_no_comment():
    for name, text in files_of(Target(per_node=2), sharding="zero3").items():
        if name.endswith(".json"):
            json.loads(text)
        elif name.endswith(".yaml"):
            assert parse_document(text, __import__("pathlib").Path(name)).data
