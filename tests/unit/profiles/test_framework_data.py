import dataclasses
import importlib.resources
import inspect
import json
from enum import Enum
from pathlib import Path

import pytest

from ftplan.profiles.frameworks import load_vocabulary

FOLDER = importlib.resources.files("ftplan.profiles") / "data" / "frameworks"
FIELDS = ["framework", "version", "source", "includes", "keys", "costly", "renamed", "removed", "added"]
EXPECTED = {
    "transformers", "trl", "llamafactory", "axolotl", "swift", "cookbook", "torchtune", "deepspeed", "accelerate",
    "peft", "bitsandbytes",
}  # fmt: skip


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def unique(pairs):
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), "a key is written twice"
    return dict(pairs)


NAMES = sorted(path.name.removesuffix(".json") for path in FOLDER.iterdir() if path.name.endswith(".json"))
every = pytest.mark.parametrize("name", NAMES)


def known(name):
    data = load(name)
    return set(data["keys"]).union(*(known(other) for other in data["includes"]))


def test_every_framework_has_a_file():
    assert set(NAMES) == EXPECTED


@every
def test_a_file_has_the_fields_of_the_schema_and_no_key_twice(name):
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    data = json.loads(text, object_pairs_hook=unique)
    assert list(data) == FIELDS
    assert data["framework"] == name
    assert data["version"]
    assert data["source"]


@every
def test_no_file_names_a_place_of_one_machine(name):
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert not [word for word in ("/tmp", "/home", "/work", "site-packages", "://") if word in text]  # noqa: S108


@every
def test_included_vocabularies_exist(name):
    assert set(load(name)["includes"]) <= set(NAMES) - {name}


@every
def test_costly_keys_are_known_and_say_what_they_do(name):
    names = known(name)
    for key, entry in load(name)["costly"].items():
        assert key in names, key
        assert set(entry) == {"harmless", "effect", "why"}, key
        assert isinstance(entry["harmless"], list), key
        assert entry["effect"] in ("more", "less", "either"), key
        assert entry["why"].strip(), key


@every
def test_a_renamed_key_leads_to_a_known_one(name):
    names = known(name)
    for key, entry in load(name)["renamed"].items():
        assert set(entry) == {"to", "in", "removed"}, key
        assert entry["to"] in names, key
        assert entry["to"] != key


@every
def test_keys_that_are_gone_are_no_keys(name):
    data = load(name)
    gone = {key for key, entry in data["renamed"].items() if entry["removed"] is not None} | set(data["removed"])
    assert not gone & set(data["keys"])
    assert not set(data["renamed"]) & set(data["removed"])
    assert all(set(entry) == {"in", "instead"} and entry["instead"] for entry in data["removed"].values())


@every
def test_added_keys_are_known(name):
    assert set(load(name)["added"]) <= known(name)


def test_a_key_of_its_own_keeps_its_name_whatever_an_included_library_calls_it():
    swift = load_vocabulary("swift")
    assert "gradient_checkpointing" in load_vocabulary("transformers").renamed
    assert swift.canonical("gradient_checkpointing") == "gradient_checkpointing"
    assert swift.canonical("train_type") == "tuner_type"


def dataclass_defaults(*classes):
    """Names of the fields, and the defaults that are plain values."""
    found = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls) if field.init):
        plain = field.default.value if isinstance(field.default, Enum) else field.default
        found[field.name] = plain if isinstance(plain, str | int | float | None) else ...
    return found


def transformers_fields():
    from transformers import TrainingArguments

    return dataclass_defaults(TrainingArguments)


def trl_fields():
    from trl import ModelConfig, ScriptArguments, SFTConfig

    return dataclass_defaults(SFTConfig, ScriptArguments, ModelConfig)


def peft_fields():
    from peft import LoraConfig

    return {name: value for name, value in dataclass_defaults(LoraConfig).items() if name != "peft_type"}


def accelerate_fields():
    from accelerate.commands.config.config_args import ClusterConfig

    return dict.fromkeys(dataclass_defaults(ClusterConfig), ...)


def deepspeed_fields():
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    sections = {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
    }
    return {
        f"{section}.{field.alias or name}": field.default if type(field.default) in (bool, int, float) else ...
        for section, cls in sections.items()
        for name, field in cls.model_fields.items()
    }


def bitsandbytes_fields():
    pytest.importorskip("transformers")
    from transformers import BitsAndBytesConfig

    return dict.fromkeys(set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}, ...)


def pinned(package):
    """The release that the tests' environment is made with."""
    lines = (Path(__file__).parents[3] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)[package]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "fields",
    [transformers_fields, trl_fields, peft_fields, accelerate_fields, deepspeed_fields, bitsandbytes_fields],
    ids=lambda fields: fields.__name__.removesuffix("_fields"),
)
def test_the_installed_release_has_no_other_keys_and_defaults(fields):
    name = fields.__name__.removesuffix("_fields")
    library = pytest.importorskip(name)
    data = load(name)
    tested = pinned(name)
    assert tested == data["version"], "constraints.txt and the file tell of different releases"
    if library.__version__ != tested:
        pytest.skip(f"{name} {library.__version__} is installed, not the {tested} of constraints.txt")
    installed = fields()
    assert sorted(set(installed) - known(name)) == []
    changed = {key: value for key, value in installed.items() if value is not ... and key in data["keys"]}
    assert {key: value for key, value in changed.items() if data["keys"][key] != value} == {}
