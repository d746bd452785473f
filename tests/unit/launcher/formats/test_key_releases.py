import pytest

from ftplan.errors import InputError
from ftplan.launcher.formats import libraries
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.versions import for_release, is_before, release, written
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


def files_for(name, version, **fields):
    chosen = FORMATS[name]
    given = {"model": "Qwen/Qwen2.5-7B", "method": "lora", "micro_batch": 2, "padding": True}
    config = RunConfig(**{**given, **chosen.pins("lora"), **fields})
    return rendered(chosen, config, Target(version=version))


@pytest.mark.parametrize(
    ("name", "version", "fields", "told"),
    [
        ("llamafactory", "0.6.0", {"packing": True, "padding": False}, r"0\.6\.0 has no neat_packing, .* with 0\.8\.3"),
        (
            "llamafactory",
            "0.6.0",
            {"kernels": "liger", "loss_path": "liger"},
            r"no enable_liger_kernel, .* with 0\.9\.0",
        ),
        ("axolotl", "0.10.0", {}, r"axolotl 0\.10\.0 has no attn_implementation, which came with 0\.12\.0"),
        ("swift", "2.6", {}, r"swift 2\.6 has no attn_impl, which came with 3\.0"),
    ],
)
def test_every_framework_s_files_are_of_the_release(name, version, fields, told):
    with pytest.raises(InputError, match=told):
        files_for(name, version, **fields)


def test_a_key_that_says_its_default_is_left_out_for_a_release_without_it():
    quantized = {"method": "qlora", "quantization": "nf4"}
    assert "quantization_method: bnb" in files_for("llamafactory", "", **quantized)["train.yaml"]
    assert "quantization_method" not in files_for("llamafactory", "0.6.0", **quantized)["train.yaml"]


def test_keys_that_are_inherited_do_not_follow_the_framework_s_releases():
    assert "eval_strategy" in str(files_for("swift", "4.5", evaluates=True))
    assert "eval_strategy" in files_for("llamafactory", "0.9.4", evaluates=True)["train.yaml"]


def test_a_name_that_took_other_values_is_no_older_name():
    assert for_release({"flash_attention": True}, load_vocabulary("axolotl"), "0.10.0") == {"flash_attention": True}


@pytest.mark.parametrize(
    "name", [name for name, each in FORMATS.items() if each.emit and name not in ("deepspeed", "transformers")]
)
def test_a_nonsense_release_is_refused(name):
    with pytest.raises(InputError, match="is no release"):
        files_for(name, "newest")
