import pytest

from ftplan.launcher.formats.launch import Launch
from ftplan.launcher.formats.recognising import framework_of, framework_of_launch


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"model_name_or_path": "x", "finetuning_type": "lora"}, "llamafactory"),
        ({"model_name_or_path": "x", "cutoff_len": 1}, "llamafactory"),
        ({"base_model": "x"}, "axolotl"),
        ({"zero_optimization": {}}, "deepspeed"),
        ({"distributed_type": "FSDP"}, "accelerate"),
        ({"compute_environment": "LOCAL_MACHINE", "deepspeed_config": {}}, "accelerate"),
        ({"model": {"_component_": "torchtune.models.x"}}, "torchtune"),
        ({"model": "x", "tuner_type": "lora"}, "swift"),
        ({"model_name_or_path": "x", "dataset_name": "y"}, "trl"),
        ({"output_dir": "x", "per_device_train_batch_size": 1}, "transformers"),
        ({"request": {}, "search": {}}, "plan"),
        ({"apiVersion": "v1"}, ""),
        ({}, ""),
        ({"model": None, "x": [1]}, ""),
    ],
)
def test_files(data, name):
    assert framework_of(data) == name


@pytest.mark.parametrize(
    ("program", "keys", "name"),
    [
        ("llamafactory-cli", (), "llamafactory"),
        ("src/train_bash.py", (), "llamafactory"),
        ("/x/llamafactory/launcher.py", (), "llamafactory"),
        ("axolotl.cli.train", (), "axolotl"),
        ("trl/scripts/sft.py", (), "trl"),
        ("x/swift/cli/sft.py", (), "swift"),
        ("tune run", (), "torchtune"),
        ("train.py", ("output_dir", "learning_rate", "per_device_train_batch_size"), "transformers"),
        ("train.py", ("stage", "finetuning_type", "learning_rate", "lora_target", "do_train"), "llamafactory"),
        ("train.py", ("output_dir",), ""),
        ("train.py", ("learning_rate", "a", "b", "c"), ""),
        ("make_data.py", ("n",), ""),
        ("", (), ""),
    ],
)
def test_programs(program, keys, name):
    assert framework_of_launch(Launch(program=program), frozenset(keys)) == name
