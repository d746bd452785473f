import textwrap

import pytest

from ftplan.errors import CannotExpressError, ConfigFileError, InputError
from ftplan.launcher.formats import trl
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.partial import Shape
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.sources import opened
from ftplan.spec import RunConfig
from ftplan.verdicts import Severity

YAML = """
    model_name_or_path: Qwen/Qwen2.5-7B
    dataset_name: some/data
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 4
    max_length: 2048
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder, text="", *words):
    """What TRL's settings in ``text`` say, alone or in a command that names them."""
    (folder / "sft.yaml").write_text(textwrap.dedent(YAML) + textwrap.dedent(text), "utf-8")
    source = opened(list(words) or ["sft.yaml"], Files(), "trl")
    return source, source.understood(1)


def errors(part):
    return {problem.key: problem for problem in part.problems if problem.severity is Severity.ERROR}


def unmodelled(part):
    return {problem.key for problem in part.problems if problem.kind == "unmodelled"}


def test_what_a_short_file_leaves_out_is_trls_own_default(folder):
    fields = read(folder)[1].fields
    assert fields["method"] == "full"
    assert fields["weights_dtype"] == "fp32"  # ModelConfig's dtype
    assert fields["precision"] == "bf16"
    assert fields["gradient_checkpointing"]
    assert fields["loss_path"] == "chunked"
    assert (fields["micro_batch"], fields["accumulation"], fields["seq_len"]) == (2, 4, 2048)
    assert fields["padding"]
    assert not fields["packing"]
    assert fields["optimizer"] == "adamw_torch_fused"
    assert fields["stack"] == "trl"


def test_fp16_takes_the_place_of_the_default_and_no_precision_is_what_the_launcher_says(folder):
    assert read(folder, "fp16: true")[1].fields["precision"] == "fp16"
    assert read(folder, "bf16: false")[1].fields["precision"] == "none"
    words = ("trl", "sft", "--config", "sft.yaml", "--mixed_precision", "fp16")
    assert read(folder, "bf16: false", *words)[1].fields["precision"] == "fp16"


def test_adapters(folder):
    fields = read(folder, "use_peft: true\nlora_target_modules: [q_proj, v_proj]\ndtype: bfloat16")[1].fields
    assert fields["method"] == "lora"
    assert (fields["lora_rank"], fields["lora_alpha"], fields["lora_dropout"]) == (16, 32, 0.05)
    assert fields["lora_targets"] == "q_proj,v_proj"
    assert fields["adapter_dtype"] == "fp32"
    assert fields["weights_dtype"] == "bf16"
    assert read(folder, "use_peft: true\nlora_target_modules: all-linear")[1].fields["lora_targets"] == "all-linear"


def test_modules_that_are_not_named_are_pefts_to_choose(folder):
    part = read(folder, "use_peft: true")[1]
    assert part.fields["lora_targets"] == "qv"
    assert "assumption" in {problem.kind for problem in part.problems if problem.key == "lora_target_modules"}


def test_adapters_of_a_quantized_model_are_recast(folder):
    fields = read(folder, "use_peft: true\nload_in_4bit: true\nuse_bnb_nested_quant: true")[1].fields
    assert (fields["method"], fields["quantization"], fields["double_quantization"]) == ("qlora", "nf4", True)
    assert fields["adapter_dtype"] == "bf16"


def test_adapters_under_zero3_keep_the_dtype_of_the_weights(folder):
    words = ("trl", "sft", "--config", "sft.yaml", "--accelerate_config", "zero3", "--use_peft", "--dtype", "bfloat16")
    source, part = read(folder, "", *words)
    assert part.fields["sharding"] == "zero3"
    assert part.fields["adapter_dtype"] == "bf16"
    assert source.shape == Shape(1, 8, 8)


@pytest.mark.parametrize(
    ("name", "sharding", "ranks"),
    [
        *(("single_gpu", "none", 1), ("multi_gpu", "ddp", 8), ("fsdp1", "fsdp2", 8), ("fsdp2", "fsdp2", 8)),
        *(("zero1", "zero1", 8), ("zero2", "zero2", 8), ("zero3", "zero3", 8)),
    ],
)
def test_packaged_configurations_of_accelerate(folder, name, sharding, ranks):
    source, part = read(folder, "", "trl", "sft", "--config", "sft.yaml", "--accelerate_config", name)
    assert part.fields["sharding"] == sharding
    assert source.shape.total == ranks
    assert not unmodelled(part)


def test_accelerate_of_ones_own_in_the_file_with_options_over_it(folder):
    (folder / "four.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 4\nmixed_precision: bf16\n", "utf-8")
    source, part = read(folder, "accelerate_config: four.yaml")
    assert (part.fields["sharding"], source.shape.total) == ("ddp", 4)
    source, _ = read(
        folder, "accelerate_config: four.yaml", "trl", "sft", "--config", "sft.yaml", "--num_processes", "2"
    )
    assert source.shape.total == 2
    assert not [problem for problem in source.understood(2).problems if problem.kind == "unknown-key"]


def test_accelerates_stated_accumulation_must_be_the_trainings(folder):
    part = read(folder, "", "trl", "sft", "--config", "sft.yaml", "--accelerate_config", "zero1")[1]
    assert "deepspeed_config.gradient_accumulation_steps" in errors(part)


def test_environment_of_the_file(folder):
    source, part = read(
        folder, "env:\n  PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True\n  CUDA_VISIBLE_DEVICES: 0,1"
    )
    assert part.fields["expandable_segments"]
    assert source.shape.per_node == 2
    with pytest.raises(ConfigFileError, match="env is no mapping"):
        read(folder, "env: PYTORCH")


@pytest.mark.parametrize(
    ("text", "packing", "padding"),
    [
        ("packing: true", True, False),
        ("packing: true\npacking_strategy: bfd_split", True, False),
        ("packing: true\npacking_strategy: wrapped", False, False),
        ("padding_free: true\nmax_length: null", True, False),
        ("per_device_train_batch_size: 1", False, False),
    ],
)
def test_packing_and_padding(folder, text, packing, padding):
    (folder / "other.yaml").write_text(f"model_name_or_path: m\n{text}\n", "utf-8")
    fields = opened(["other.yaml"], Files(), "trl").understood(1).fields
    assert (fields["packing"], fields["padding"]) == (packing, padding)
    assert ("seq_len" in fields) == ("null" not in text)


def test_older_names_are_read_and_reported(folder):
    part = read(folder, "torch_dtype: bfloat16\nevaluation_strategy: steps")[1]
    assert part.fields["weights_dtype"] == "bf16"
    assert part.fields["evaluates"]
    (folder / "old.yaml").write_text("model_name_or_path: m\nmax_seq_length: 512\n", "utf-8")
    part = opened(["old.yaml"], Files(), "trl").understood(1)
    assert part.fields["seq_len"] == 512
    assert {problem.kind for problem in part.problems if problem.key == "max_seq_length"} == {"renamed-key"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("use_peft: true\nload_in_4bit: true\nload_in_8bit: true", "load_in_8bit"),
        ("load_in_4bit: true", "use_peft"),
        ("padding_free: true", "padding_free"),
        ("use_liger_kernel: true\nliger_kernel_config: {fused_linear_cross_entropy: true}", "liger_kernel_config"),
        ("use_peft: true\nlora_target_modules: [q_proj, lm_head]", "lora_target_modules"),
        ("loss_type: ppo", "loss_type"),
        ("gradient_checkpointing_kwargs: {selective: true, use_reentrant: true}", "gradient_checkpointing_kwargs"),
        ("gradient_checkpointing: false\ngradient_checkpointing_kwargs: {selective: true}",
         "gradient_checkpointing_kwargs"),
        ("bf16: true\nfp16: true", "fp16"),
        ("load_best_model_at_end: true", "load_best_model_at_end"),
    ],
)  # fmt: skip
def test_what_trl_refuses(folder, text, key):
    problem = errors(read(folder, text)[1])[key]
    assert problem.kind == "conflict"
    assert problem.hint
    assert problem.source


def test_packing_without_length_and_a_command_without_data(folder):
    (folder / "none.yaml").write_text("model_name_or_path: m\npacking: true\nmax_length: null\n", "utf-8")
    part = opened(["trl", "sft", "--config", "none.yaml"], Files()).understood(1)
    assert errors(part).keys() == {"max_length", "dataset_name"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("use_liger_kernel: true", "use_liger_kernel"),
        ("activation_offloading: true", "activation_offloading"),
        ("gradient_checkpointing_kwargs: {selective: true}", "gradient_checkpointing_kwargs.selective"),
        ("gradient_checkpointing_kwargs: {use_reentrant: true}", "gradient_checkpointing_kwargs.use_reentrant"),
        ("model_init_kwargs: {attn_implementation: flex_attention}", "model_init_kwargs.attn_implementation"),
        ("fsdp: true\nfsdp_config: {auto_wrap_policy: SIZE_BASED_WRAP}", "fsdp_config.auto_wrap_policy"),
    ],
)
def test_what_costs_memory_and_is_not_modelled(folder, text, key):
    assert key in unmodelled(read(folder, text)[1])


def test_samples_that_are_not_cut_may_be_of_any_length(folder):
    (folder / "long.yaml").write_text("model_name_or_path: m\nuse_peft: true\nmax_length: null\n", "utf-8")
    part = opened(["long.yaml"], Files()).understood(1)
    assert "seq_len" not in part.fields
    assert any(problem.key == "max_length" and problem.may_need_more for problem in part.problems)


def test_reentrant_checkpointing_is_modelled_where_trl_forces_it(folder):
    text = "use_peft: true\ngradient_checkpointing_kwargs: {use_reentrant: true}"
    words = ("trl", "sft", "--config", "sft.yaml", "--accelerate_config", "zero3", "--gradient_accumulation_steps", "1")
    assert not unmodelled(read(folder, text, *words)[1])


def test_only_supervised_fine_tuning_is_read(folder):
    with pytest.raises(ConfigFileError, match="starts no training that is known"):
        opened(["trl", "dpo", "--model_name_or_path", "m"], Files())


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch --num_processes 2 trl/scripts/sft.py --model_name_or_path m --max_length 64",
        "torchrun --nproc_per_node 2 -m trl.scripts.sft --model_name_or_path m --max_length 64",
        "trl sft --model_name_or_path m --max_length 64 --num_processes 2 --dataset_name d",
    ],
)
def test_command_lines(folder, command):
    source = opened(command.split(), Files())
    fields = source.understood(2).fields
    assert source.format.name == "trl"
    assert (source.shape.per_node or source.shape.total) == 2
    assert (fields["model"], fields["seq_len"]) == ("m", 64)


def config(**fields):
    return RunConfig(model="Qwen2.5-0.5B", stack="trl", **fields)


def written(version="", per_node=1, **fields):
    return rendered(trl.FORMAT, config(**fields), Target(version=version, per_node=per_node))


def test_a_full_fine_tuning_is_written_with_everything_that_trl_would_turn_on():
    files = written(method="full", precision="none", gradient_checkpointing=False)
    assert "bf16: false" in files["train.yaml"]
    assert "gradient_checkpointing: false" in files["train.yaml"]
    assert "dtype: bfloat16" in files["train.yaml"]
    assert files.keys() == {"train.yaml", "launch.sh"}


def test_shardings_have_files_and_launchers_of_their_own():
    assert "--accelerate_config accelerate.yaml" in written(sharding="fsdp2", per_node=2)["launch.sh"]
    zero = written(sharding="zero2", per_node=2)
    assert "deepspeed: deepspeed.json" in zero["train.yaml"]
    assert "--num_processes 2 --multi_gpu" in zero["launch.sh"]
    assert "torchrun --standalone --nproc_per_node 1 -m trl.scripts.sft" in written(sharding="zero2")["launch.sh"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kernels": "liger"}, "kernels"),
        ({"method": "qlora", "prepare_kbit": True}, "prepare_kbit"),
        ({"adapter_dtype": "bf16"}, "adapter_dtype"),
        ({"loss_path": "full"}, "loss_path"),
        ({"offload": "optimizer"}, "offload"),
        ({"padding": True}, "padding"),
    ],
)
def test_what_trl_has_no_words_for_is_named(fields, named):
    with pytest.raises(CannotExpressError) as raised:
        written(**fields)
    assert named in raised.value.fields


def test_a_release_gets_its_own_names():
    old = written("0.20.0", loss_path="full")["train.yaml"]
    assert "torch_dtype: bfloat16" in old
    assert "loss_type" not in old
    assert "max_seq_length: 1024" in written("0.15.0", loss_path="full")["train.yaml"]
    assert "loss_type: nll" in written("1.10.0", loss_path="full")["train.yaml"]
    assert "loss_type: chunked_nll" in written("1.4.0")["train.yaml"]
    assert "loss_type" not in written("1.15.0")["train.yaml"]


def test_liger_computes_the_loss_until_trl_has_a_fused_head():
    assert "use_liger_kernel: true" in written("1.14.0", kernels="liger")["train.yaml"]
    with pytest.raises(CannotExpressError):
        written("1.15.0", kernels="liger")


@pytest.mark.parametrize(
    ("version", "fields", "key"),
    [
        ("0.24.0", {}, "loss_type"),
        ("0.18.0", {"loss_path": "full", "packing": True}, "packing_strategy"),
        ("0.9.0", {"loss_path": "full"}, "version"),
        ("newest", {}, "version"),
    ],
)
def test_what_a_release_lacks_is_an_error_that_names_it(version, fields, key):
    with pytest.raises(InputError, match=version) as raised:
        written(version, **fields)
    assert raised.value.field == key


def test_pins_are_what_the_files_cannot_choose():
    assert trl.pins("lora") == {"stack": "trl", "kernels": "none", "loss_path": "chunked", "prepare_kbit": False}
    assert trl.pins("qlora")["adapter_dtype"] == "bf16"
