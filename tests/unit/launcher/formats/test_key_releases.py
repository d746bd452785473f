import pytest

from ftplan.errors import InputError
from ftplan.launcher.formats import libraries
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.versions import is_before, release, written
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.spec import RunConfig


def in_transformers(version, **arguments):
    return written(arguments, load_vocabulary("transformers"), version)


def test_releases_compare_by_their_numbers():
    assert release("4.46.0rc1") == (4, 46)
    assert is_before("4.9", "4.41")
    assert not is_before("5.23.0", "5.23")
    assert not is_before("", "0.1")


@pytest.mark.parametrize("text", ["newest", "v5", "-1"])
def test_what_is_no_release(text):
    with pytest.raises(InputError, match="is no release"):
        release(text)


def test_a_key_has_the_name_of_the_release():
    assert in_transformers("", gradient_checkpointing=True) == {"activation_checkpointing": True}
    assert in_transformers("5.22.0", gradient_checkpointing=True) == {"gradient_checkpointing": True}
    assert in_transformers("4.40.0", eval_strategy="steps") == {"evaluation_strategy": "steps"}
    assert in_transformers("4.41.0", evaluation_strategy="steps") == {"eval_strategy": "steps"}
    assert in_transformers("4.40.0", learning_rate=1.0) == {"learning_rate": 1.0}


def test_what_a_release_lacks_is_named_with_it():
    with pytest.raises(
        InputError, match=r"transformers 4\.40\.0 has no use_liger_kernel, which came with 4\.45"
    ) as raised:
        in_transformers("4.40.0", use_liger_kernel=True)
    assert raised.value.field == "use_liger_kernel"


def test_keys_inside_of_mappings_are_looked_at_too():
    inside = {"fsdp_config": {"version": 2}}
    assert in_transformers("5.0.0", **inside) == inside
    with pytest.raises(InputError, match=r"fsdp_config\.version"):
        in_transformers("4.57.0", **inside)


def test_a_framework_follows_its_own_releases_not_those_of_what_it_includes():
    known = load_vocabulary("trl")
    assert written({"eval_strategy": "steps", "dtype": "auto"}, known, "0.20.0") == {
        "eval_strategy": "steps",
        "torch_dtype": "auto",
    }
    assert written({"gradient_checkpointing": True}, known) == {"gradient_checkpointing": True}


def arguments(version, **fields):
    config = RunConfig(model="gpt2", method="full", **fields)
    ranks = 1 if config.sharding == "none" else 2
    return rendered(libraries.TRANSFORMERS, config, Target(version=version, per_node=ranks))["training_args.json"]


def test_training_arguments_of_releases():
    assert '"activation_checkpointing": true' in arguments("")
    assert '"gradient_checkpointing": true' in arguments("5.8.0")
    assert '"evaluation_strategy": "steps"' in arguments("4.40.0", evaluates=True)
    assert '"fsdp": true' in arguments("5.23.0", sharding="fsdp2")
    words = arguments("5.8.0", sharding="fsdp2-grad-op", offload="optimizer+params")
    assert '"fsdp": "shard_grad_op auto_wrap offload"' in words
    with pytest.raises(InputError, match=r"4\.57\.0"):
        arguments("4.57.0", sharding="fsdp2")


def test_accelerates_file_of_releases():
    config = RunConfig(model="gpt2", sharding="fsdp2")
    with pytest.raises(InputError, match=r"accelerate 1\.0\.0 has no fsdp_config\.fsdp_version"):
        rendered(libraries.ACCELERATE, config, Target(version="1.0.0", per_node=2))
