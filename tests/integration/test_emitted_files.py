"""Written configurations, read by the libraries' own parsers: every key is theirs, every value means what it should."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shlex
import types

import pytest

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import rendered
from ftplan.spec import RunConfig

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

ZERO = ("zero1", "zero2", "zero3")
METHODS = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora_targets": "q_proj,v_proj", "lora_dropout": 0.05},
    "all": {"method": "lora", "lora_targets": "all-linear"},
    "one": {"method": "lora", "lora_targets": "q_proj", "lora_rank": 64},
    "qlora": {"method": "qlora"},
    "fp4": {"method": "qlora", "quantization": "fp4", "double_quantization": False},
}
SHARDINGS = {
    "none": {"sharding": "none"},
    "ddp": {"sharding": "ddp"},
    "zero1": {"sharding": "zero1", "zero_overlap": False},
    "zero2": {"sharding": "zero2", "zero_reduce_bucket": 1_000_000},
    "zero2-offload": {"sharding": "zero2", "offload": "optimizer"},
    "zero3": {"sharding": "zero3", "zero_persistence_threshold": 0, "zero_prefetch_bucket": 5_000},
    "zero3-offload": {"sharding": "zero3", "offload": "optimizer+params"},
    "fsdp2": {"sharding": "fsdp2"},
    "fsdp2-grad-op": {"sharding": "fsdp2-grad-op", "sync_each_batch": True},
    "fsdp2-offload": {"sharding": "fsdp2", "offload": "optimizer+params"},
}
OTHERS = {
    "plain": {"micro_batch": 1, "accumulation": 8},
    "padded": {"micro_batch": 4, "padding": True, "gradient_checkpointing": False, "evaluates": True},
    "packed": {"micro_batch": 2, "packing": True, "attention": "flash_attention_2", "optimizer": "adamw_torch_fused"},
    "half": {"precision": "fp16", "weights_dtype": "fp16", "optimizer": "adamw_8bit", "seq_len": 333},
    "pure": {"precision": "none", "weights_dtype": "bf16", "optimizer": "adafactor", "attention": "eager"},
}
grid = pytest.mark.parametrize("other", OTHERS)
shardings = pytest.mark.parametrize("sharding", SHARDINGS)


@pytest.fixture(autouse=True)
def _own_process_state(monkeypatch, tmp_path):
    """The libraries keep their plugins in the environment and in classes."""
    saved = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(saved)
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(True)
    pytest.importorskip("transformers.integrations.deepspeed").unset_hf_deepspeed_config()


def target_of(sharding):
    return Target(per_node=1 if sharding == "none" else 4, learning_rate=2e-4)


def write(name, config, target, folder):
    """The files of a format in ``folder``."""
    files = rendered(FORMATS[name], config, target)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return files


def command_of(files):
    line = files["launch.sh"].splitlines()[-1]
    return shlex.split(line)[1:-1]


def for_trl(method, sharding, other):
    fields = {"model": "Qwen2.5-0.5B", "stack": "trl", **METHODS[method], **SHARDINGS[sharding], **OTHERS[other]}
    if fields["method"] == "lora" and fields["sharding"] == "zero3":
        fields["adapter_dtype"] = fields.get("weights_dtype", "bf16")
    if fields["method"] == "qlora":
        # What TRL makes of them, whatever the precision; with fp16 no plan has it.
        fields["adapter_dtype"] = "bf16"
    return RunConfig(**fields)


def same_training(arguments, config):
    assert arguments.per_device_train_batch_size == config.micro_batch
    assert arguments.gradient_accumulation_steps == config.accumulation
    assert (arguments.bf16, arguments.fp16) == (config.precision == "bf16", config.precision == "fp16")
    assert arguments.gradient_checkpointing == config.gradient_checkpointing
    assert arguments.optim == config.optimizer
    assert arguments.learning_rate == 2e-4
    assert (arguments.eval_strategy != "no") == config.evaluates
    plugin = arguments.accelerator_config.gradient_accumulation_kwargs or {}
    assert plugin.get("sync_each_batch", False) == config.sync_each_batch


def same_model(model, config):
    trl = pytest.importorskip("trl")
    assert model.model_name_or_path == "Qwen/Qwen2.5-0.5B"
    assert model.dtype == {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[config.weights_dtype]
    assert model.attn_implementation == config.attention
    adapters = trl.get_peft_config(model)
    assert (adapters is not None) == config.trains_adapters
    if adapters is not None:
        named = adapters.target_modules
        assert (named if isinstance(named, str) else ",".join(sorted(named))) == config.lora_targets
        assert (adapters.r, adapters.lora_alpha) == (config.lora_rank, config.lora_alpha)
        assert adapters.lora_dropout == config.lora_dropout
    bits = trl.get_quantization_config(model)
    assert (bits is not None) == (config.quantization != "none")
    if bits is not None:
        assert bits.bnb_4bit_quant_type == config.quantization
        assert bits.bnb_4bit_use_double_quant == config.double_quantization


def same_zero(plain, config):
    """A DeepSpeed configuration with every "auto" filled in."""
    runtime = pytest.importorskip("deepspeed.runtime.config")
    patch = pytest.MonkeyPatch()
    ranks = 4
    with patch.context() as context:
        context.setattr(runtime.dist, "get_rank", lambda: 0)
        context.setattr(runtime.dist, "get_world_size", lambda: ranks)
        read = runtime.DeepSpeedConfig(plain)
    zero = read.zero_config
    assert int(zero.stage) == int(config.sharding[-1])
    assert read.train_micro_batch_size_per_gpu == config.micro_batch
    assert read.gradient_accumulation_steps == config.accumulation
    assert read.train_batch_size == config.micro_batch * config.accumulation * ranks
    assert zero.overlap_comm == config.zero_overlap
    assert (zero.offload_optimizer is not None) == (config.offload != "none")
    assert (zero.offload_param is not None) == (config.offload == "optimizer+params")
    if config.zero_reduce_bucket is not None:
        assert zero.reduce_bucket_size == config.zero_reduce_bucket
    if config.zero_persistence_threshold is not None:
        assert zero.param_persistence_threshold == config.zero_persistence_threshold
    if config.zero_prefetch_bucket is not None:
        assert zero.prefetch_bucket_size == config.zero_prefetch_bucket
    assert read.bfloat16_config.enabled == (config.precision == "bf16")
    assert read.float16_config.enabled == (config.precision == "fp16")


def filled(arguments, folder):
    """DeepSpeed's file as the Trainer hands it on: four ranks, a hidden size of 64."""
    integration = pytest.importorskip("transformers.integrations.deepspeed")
    found = integration.HfTrainerDeepSpeedConfig(str(folder / "deepspeed.json"))
    given = copy.copy(arguments)
    given.__class__ = type("OnFourRanks", (type(arguments),), {"world_size": 4})
    found.trainer_config_process(given)
    found.trainer_config_finalize(given, types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=64)), 100)
    assert not found.mismatches
    assert "auto" not in json.dumps(found.config)
    return found.config


@grid
@shardings
@pytest.mark.parametrize("method", METHODS)
def test_trl_reads_its_yaml(method, sharding, other, tmp_path):
    pytest.importorskip("trl")
    sft = pytest.importorskip("trl.scripts.sft")
    launch = pytest.importorskip("trl.cli.accelerate_config")
    config = for_trl(method, sharding, other)
    files = write("trl", config, target_of(sharding), tmp_path)
    words = command_of(files)
    assert words[:2] == ["trl", "sft"]
    script, arguments, model, _, from_file, from_command = sft.make_parser().parse_args_and_config(
        [*words[2:], "--use_cpu", "True"], return_remaining_strings=True, separate_remaining_strings=True
    )
    assert from_file == []
    assert script.dataset_name
    assert arguments.max_length == config.seq_len
    assert arguments.packing == config.packing
    same_training(arguments, config)
    same_model(model, config)
    if config.sharding in ZERO:
        same_zero(filled(arguments, tmp_path), config)
    accelerate_starts(launch.resolve_accelerate_config_argument(from_command), config, 1 if sharding == "none" else 4)


def test_trl_reads_its_yaml_where_deepspeed_has_one_process(tmp_path):
    sft = pytest.importorskip("trl.scripts.sft")
    config = for_trl("lora", "zero2-offload", "plain")
    words = command_of(write("trl", config, Target(), tmp_path))
    assert words[:6] == ["torchrun", "--standalone", "--nproc_per_node", "1", "-m", "trl.scripts.sft"]
    read = sft.make_parser().parse_args_and_config([*words[6:], "--use_cpu", "True"])
    assert read[1].deepspeed == "deepspeed.json"


def accelerate_starts(options, config, ranks):
    """accelerate takes ``options``, and its plugins what it hands to the processes."""
    launch = pytest.importorskip("accelerate.commands.launch")
    arguments, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args([*options, "train.py"]))
    assert arguments.num_processes == ranks
    assert arguments.use_fsdp == config.sharding.startswith("fsdp2")
    if arguments.use_fsdp:
        own = pytest.importorskip("accelerate.utils.launch")
        os.environ.update(own.prepare_multi_gpu_env(arguments))
        plugin = pytest.importorskip("accelerate").FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward == (config.sharding == "fsdp2")
        assert (type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy") == (config.offload != "none")


@grid
@shardings
def test_transformers_reads_its_json(sharding, other, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = RunConfig(
        **{"model": "Qwen2.5-0.5B", "method": "full", "stack": "trainer", **SHARDINGS[sharding], **OTHERS[other]}
    )
    files = write("transformers", config, target_of(sharding), tmp_path)
    path = tmp_path / "training_args.json"
    # bf16 needs a card or a training on the CPU.
    path.write_text(json.dumps({**json.loads(files["training_args.json"]), "use_cpu": True}), encoding="utf-8")
    (arguments,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_json_file(str(path))
    same_training(arguments, config)
    if config.sharding in ZERO:
        same_zero(filled(arguments, tmp_path), config)
    plugin = arguments.fsdp_plugin_args
    assert (plugin is not None) == config.sharding.startswith("fsdp2")
    if plugin is not None:
        assert plugin["fsdp_version"] == 2
        assert plugin["reshard_after_forward"] == (config.sharding == "fsdp2")
        assert plugin.get("cpu_offload", False) == (config.offload != "none")


@grid
@shardings
def test_accelerate_reads_its_yaml(sharding, other, tmp_path):
    reader = pytest.importorskip("accelerate.commands.config.config_args")
    config = RunConfig(**{"model": "Qwen2.5-0.5B", "method": "full", **SHARDINGS[sharding], **OTHERS[other]})
    target = target_of(sharding)
    words = command_of(write("accelerate", config, target, tmp_path))
    read = reader.load_config_from_file(str(tmp_path / "accelerate.yaml"))
    assert isinstance(read, reader.ClusterConfig)
    assert read.num_processes == target.ranks
    known = {field.name for field in dataclasses.fields(reader.ClusterConfig)}
    assert vars(read).keys() <= known
    assert words[:2] == ["accelerate", "launch"]
    if config.sharding in ZERO:
        deepspeed_starts(words[2:], config, tmp_path)
    else:
        accelerate_starts(words[2:-1], config, target.ranks)


def deepspeed_starts(words, config, folder):
    """accelerate's DeepSpeed plugin, made from the environment that its launcher gives the processes."""
    launch = pytest.importorskip("accelerate.commands.launch")
    own = pytest.importorskip("accelerate.utils.launch")
    arguments, defaults, from_file = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    assert arguments.use_deepspeed
    stated = [*defaults.deepspeed_config, *(["mixed_precision"] if from_file else [])]
    arguments.deepspeed_fields_from_accelerate_config = ",".join(stated)
    _, environment = own.prepare_deepspeed_cmd_env(arguments)
    os.environ.update(environment)
    plugin = pytest.importorskip("accelerate").DeepSpeedPlugin()
    assert plugin.zero_stage == int(config.sharding[-1])
    content = json.loads((folder / "deepspeed.json").read_text("utf-8"))
    assert content["bf16"]["enabled"] == (config.precision == "bf16")


@grid
@pytest.mark.parametrize("sharding", [name for name in SHARDINGS if name.startswith("zero")])
def test_deepspeed_reads_its_json(sharding, other, tmp_path):
    pytest.importorskip("deepspeed")
    config = RunConfig(**{"model": "Qwen2.5-0.5B", "method": "full", **SHARDINGS[sharding], **OTHERS[other]})
    if (sharding, other) == ("zero2", "pure"):
        with pytest.raises(CannotExpressError, match="weights_dtype bf16"):
            write("deepspeed", config, target_of(sharding), tmp_path)
        return
    files = write("deepspeed", config, target_of(sharding), tmp_path)
    plain = {
        key: value if value != "auto" else 10_000
        for key, value in json.loads(files["deepspeed.json"])["zero_optimization"].items()
    }
    content = {**json.loads(files["deepspeed.json"]), "zero_optimization": plain}
    same_zero(content, config)
    assert pytest.importorskip("transformers.integrations.deepspeed").HfDeepSpeedConfig(content).is_zero3() == (
        config.sharding == "zero3"
    )
