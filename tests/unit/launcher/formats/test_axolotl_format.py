from pathlib import Path

import pytest
import yaml

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats.axolotl import FORMAT, pins
from ftplan.launcher.formats.axolotl_refusals import CONFLICTS
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.sources import opened
from ftplan.spec import RunConfig
from ftplan.verdicts import Severity

BASE = """\
base_model: NousResearch/Meta-Llama-3.1-8B
datasets:
  - path: tatsu-lab/alpaca
    type: alpaca
sequence_len: 4096
micro_batch_size: 2
gradient_accumulation_steps: 4
optimizer: paged_adamw_8bit
bf16: true
gradient_checkpointing: true
attn_implementation: flash_attention_2
"""
LORA = """\
adapter: lora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
"""


def written(**settings):
    data = {**yaml.safe_load(BASE), **settings}
    return yaml.safe_dump({key: value for key, value in data.items() if value is not ...})


def read(text, *, ranks=1, words=None, beside=None):
    path = Path("/nowhere/config.yml")
    files = Files({path: text, **{Path("/nowhere") / name: each for name, each in (beside or {}).items()}})
    return opened([str(path), *(words or ())], files, "").understood(ranks)


def fields(text, **more):
    return read(text, **more).fields


def problem_keys(part, kind="unmodelled"):
    return {problem.key for problem in part.problems if problem.kind == kind}


def messages(part, kind):
    return [problem.message for problem in part.problems if problem.kind == kind]


def test_a_full_fine_tuning():
    found = fields(BASE)
    assert found["model"] == "NousResearch/Meta-Llama-3.1-8B"
    assert found["method"] == "full"
    assert (found["seq_len"], found["micro_batch"], found["accumulation"]) == (4096, 2, 4)
    assert (found["weights_dtype"], found["precision"]) == ("bf16", "bf16")
    assert found["optimizer"] == "paged_adamw_8bit"
    assert found["gradient_checkpointing"]
    assert found["attention"] == "flash_attention_2"
    assert found["stack"] == "axolotl"
    assert "sharding" not in found


def test_adapters():
    found = fields(BASE + LORA)
    assert (found["method"], found["lora_rank"], found["lora_alpha"], found["lora_dropout"]) == ("lora", 32, 16, 0.05)
    assert found["lora_targets"] == "all-linear"
    assert found["adapter_dtype"] == "fp32"
    assert fields(BASE + LORA + "peft_autocast_adapter_dtype: false")["adapter_dtype"] == "bf16"
    named = LORA.replace("lora_target_linear: true", "lora_target_modules: [q_proj, v_proj]")
    assert fields(BASE + named)["lora_targets"] == "q_proj,v_proj"


def test_four_bits_are_nf4_twice_quantized_without_upcast():
    text = BASE + LORA.replace("lora\n", "qlora\n", 1) + "load_in_4bit: true\n"
    found = fields(text)
    assert (found["method"], found["quantization"], found["double_quantization"]) == ("qlora", "nf4", True)
    assert found["prepare_kbit"] is False
    asked = text + "bnb_config_kwargs:\n  bnb_4bit_quant_type: fp4\n  bnb_4bit_use_double_quant: false\n"
    assert fields(asked)["quantization"] == "fp4"
    assert fields(asked)["double_quantization"] is False
    assert "bnb_config_kwargs" not in problem_keys(read(asked))
    stored = text + "bnb_config_kwargs:\n  bnb_4bit_quant_storage: uint8\n"
    assert "bnb_config_kwargs" in problem_keys(read(stored))


@pytest.mark.parametrize(
    ("settings", "weights", "precision"),
    [
        ({"bf16": ...}, "bf16", "bf16"),  # auto
        ({"bf16": "auto", "fp16": True}, "fp16", "fp16"),
        ({"bf16": "full"}, "bf16", "none"),
        ({"bf16": False, "bfloat16": True}, "bf16", "bf16"),
        ({"bf16": False, "fp16": True}, "fp16", "fp16"),
        ({"bf16": False, "float16": True}, "fp16", "none"),
        ({"bf16": False}, "fp32", "none"),
        ({"bf16": None}, "fp32", "none"),
    ],
)
def test_dtypes_of_weights_and_autocast(settings, weights, precision):
    found = fields(written(**settings))
    assert (found["weights_dtype"], found["precision"]) == (weights, precision)


def test_the_batch_may_be_given_as_a_product():
    found = fields(written(gradient_accumulation_steps=..., batch_size=12, micro_batch_size=4))
    assert (found["micro_batch"], found["accumulation"]) == (4, 3)


@pytest.mark.parametrize(
    ("settings", "packing", "padding"),
    [
        ({}, False, True),
        ({"micro_batch_size": 1}, False, True),  # lengths are rounded up to a multiple of 64
        ({"micro_batch_size": 1, "pad_to_sequence_len": False}, False, False),
        ({"pad_to_sequence_len": False}, False, True),
        ({"sample_packing": True}, True, False),
        ({"sample_packing": True, "attn_implementation": "sdpa"}, True, False),
        ({"sample_packing": True, "attn_implementation": ...}, False, True),  # nothing keeps samples apart
    ],
)
def test_which_batches_carry_a_mask(settings, packing, padding):
    found = fields(written(**settings))
    assert (found["packing"], found["padding"]) == (packing, padding)


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"sequence_len": 1000}, 1024),
        ({"sequence_len": 1000, "pad_to_sequence_len": False}, 1000),
        ({"sequence_len": 1000, "pad_to_multiple_of": 8}, 1000),
        ({"sequence_len": 2048}, 2048),
        ({"sequence_len": ...}, 512),
    ],
)
def test_lengths_are_rounded_up_as_the_collator_does(settings, length):
    assert fields(written(**settings))["seq_len"] == length


@pytest.mark.parametrize(
    ("settings", "attention"),
    [
        ({"attn_implementation": ..., "flash_attention": True}, "flash_attention_2"),
        ({"attn_implementation": ..., "sdp_attention": True}, "sdpa"),
        ({"attn_implementation": ..., "eager_attention": True}, "eager"),
        ({"attn_implementation": ...}, "sdpa"),
        ({"attn_implementation": "sdpa"}, "sdpa"),
        ({"attn_implementation": ..., "xformers_attention": True}, "flash_attention_2"),
    ],
)
def test_attention_by_name_and_by_older_flags(settings, attention):
    assert fields(written(**settings))["attention"] == attention


def test_other_attention_kernels_are_not_modelled():
    assert "attn_implementation" in problem_keys(read(written(attn_implementation="flex_attention")))
    assert "attn_implementation" not in problem_keys(read(BASE))
    assert "flash_attention" not in problem_keys(read(written(attn_implementation=..., flash_attention=True)))


def test_full_fine_tuning_without_flash_attention_trains_embeddings_in_fp32():
    found = [each for each in read(written(attn_implementation="sdpa")).problems if each.key == "attn_implementation"]
    assert [(each.may_need_more, each.may_need_less, each.within) for each in found] == [(True, False, 1.0)]
    assert not problem_keys(read(BASE))
    assert "attn_implementation" not in problem_keys(read(written(attn_implementation="sdpa") + LORA))
    sharded = written(attn_implementation="sdpa", optimizer="adamw_torch", deepspeed="deepspeed_configs/zero1.json")
    assert "attn_implementation" not in problem_keys(read(sharded, ranks=2))


LIGER = {
    "plugins": ["axolotl.integrations.liger.LigerPlugin"],
    "liger_rope": True,
    "liger_rms_norm": True,
    "liger_glu_activation": True,
    "liger_fused_linear_cross_entropy": True,
}


def test_liger_counts_with_its_plugin():
    found = read(written(**LIGER))
    assert found.fields["kernels"] == "liger"
    assert not problem_keys(found)
    without = read(written(**{**LIGER, "plugins": ...}))
    assert without.fields["kernels"] == "none"
    assert any("has no effect" in text for text in messages(without, "conflict"))


def test_parts_of_liger_are_not_modelled():
    only_loss = read(written(**{**LIGER, "liger_rms_norm": ..., "liger_glu_activation": ...}))
    assert only_loss.fields["kernels"] == "liger"
    assert [each.may_need_more for each in only_loss.problems if each.kind == "unmodelled"] == [True]
    no_loss = read(written(**{**LIGER, "liger_fused_linear_cross_entropy": ...}))
    assert no_loss.fields["kernels"] == "none"
    assert [each.may_need_less for each in no_loss.problems if each.kind == "unmodelled"] == [True]


def test_cut_cross_entropy_is_not_modelled():
    plugin = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
    assert "plugins" in problem_keys(read(written(plugins=[plugin])))


def kernels_of(text):
    return [each for each in read(text).problems if each.key == "lora_mlp_kernel" and each.kind == "unmodelled"]


def test_kernels_for_lora_are_on_unless_they_are_switched_off():
    (found,) = kernels_of(BASE + LORA)
    assert found.may_need_less
    assert not found.may_need_more
    assert found.within == 0.4
    assert kernels_of(written(gradient_checkpointing=False) + LORA)[0].within == 0.6
    off = "".join(f"lora_{name}_kernel: false\n" for name in ("mlp", "qkv", "o", "embedding"))
    assert not kernels_of(BASE + LORA + off)
    assert not kernels_of(BASE + LORA + "load_in_8bit: true\n")
    assert not kernels_of(BASE + LORA + "trust_remote_code: true\n")
    assert not kernels_of(BASE + LORA + "fsdp_config:\n  offload_params: false\n")
    assert not kernels_of(BASE)


@pytest.mark.parametrize(
    ("kwargs", "sharding", "kind", "within"),
    [
        ({"use_reentrant": False}, "zero1", "assumption", 0.03),
        ({"use_reentrant": False}, "zero3", "unmodelled", None),
        ({"use_reentrant": True}, "zero3", "", None),
    ],
)
def test_checkpoints_that_are_not_reentrant(kwargs, sharding, kind, within):
    text = written(gradient_checkpointing_kwargs=kwargs, deepspeed=f"deepspeed_configs/{sharding}.json") + LORA
    key = "gradient_checkpointing_kwargs"
    found = [(each.kind, each.within) for each in read(text, ranks=2).problems if each.key.startswith(key)]
    assert found == ([(kind, within)] if kind else [])


@pytest.mark.parametrize(
    ("name", "sharding", "offload"),
    [
        ("zero1", "zero1", "none"),
        ("zero2", "zero2", "optimizer"),
        ("zero3", "zero3", "none"),
        ("zero3_bf16_cpuoffload_all", "zero3", "optimizer+params"),
    ],
)
def test_packaged_deepspeed_files_need_not_be_there(name, sharding, offload):
    found = fields(written(deepspeed=f"deepspeed_configs/{name}.json"), ranks=2)
    assert (found["sharding"], found["offload"]) == (sharding, offload)


def test_a_deepspeed_file_is_read():
    text = '{"zero_optimization": {"stage": 2, "overlap_comm": false}, "train_micro_batch_size_per_gpu": "auto"}'
    assert fields(written(deepspeed="ds.json"), beside={"ds.json": text})["sharding"] == "zero2"
    with pytest.raises(ConfigFileError, match=r"cannot read .*none\.json"):
        read(written(deepspeed="none.json"))


def test_fsdp_in_its_own_words():
    second = {"fsdp_version": 2, "fsdp_config": {"offload_params": True, "reshard_after_forward": True}}
    found = read(written(optimizer="adamw_torch_fused", **second), ranks=4)
    assert (found.fields["sharding"], found.fields["offload"]) == ("fsdp2", "optimizer+params")
    assert not problem_keys(found)
    assert "fsdp_version" not in problem_keys(found, "assumption")
    kept = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}}
    assert fields(written(**kept))["sharding"] == "fsdp2-grad-op"


def test_fsdp_with_prefixes_and_without_a_version_is_the_first():
    first = {"fsdp": ["full_shard", "auto_wrap"], "fsdp_config": {"fsdp_offload_params": False}}
    found = read(written(**first))
    assert (found.fields["sharding"], found.fields["offload"]) == ("fsdp2", "none")
    assert "fsdp_version" in problem_keys(found, "assumption")
    assert fields(written(fsdp=["shard_grad_op"]))["sharding"] == "fsdp2-grad-op"
    # A strategy inside fsdp_config is no key of axolotl's, and has no effect.
    inside = {"fsdp": ["full_shard"], "fsdp_config": {"fsdp_sharding_strategy": "SHARD_GRAD_OP"}}
    assert fields(written(**inside))["sharding"] == "fsdp2"
    with pytest.raises(ConfigFileError, match="fsdp_config is no mapping"):
        read(written(fsdp_config="full_shard"))


def test_replicated_groups_are_hybrid_shards():
    hybrid = {"fsdp_version": 2, "fsdp_config": {"offload_params": False}, "dp_replicate_size": 2, "dp_shard_size": 8}
    assert fields(written(**hybrid))["sharding"] == "hsdp"
    partly = {"fsdp_version": 2, "fsdp_config": {"offload_params": False}, "dp_shard_size": 4}
    assert "dp_shard_size" in problem_keys(read(written(**partly), ranks=8))
    assert "dp_shard_size" not in problem_keys(read(written(**partly), ranks=4))


@pytest.mark.parametrize(
    ("settings", "evaluates"),
    [
        ({}, False),
        ({"val_set_size": 0.1}, False),
        ({"val_set_size": 0.1, "eval_steps": 50}, True),
        ({"val_set_size": 0.1, "evals_per_epoch": 4}, True),
        ({"val_set_size": 0.1, "evals_per_epoch": 1, "num_epochs": 1}, False),
        ({"val_set_size": 0.1, "evals_per_epoch": 0}, False),
        ({"val_set_size": 0.1, "eval_strategy": "epoch"}, True),
        ({"test_datasets": [{"path": "x"}], "eval_strategy": "epoch"}, True),
        ({"val_set_size": 0.0, "evals_per_epoch": 4}, False),
    ],
)
def test_evaluations_need_data_and_steps(settings, evaluates):
    assert fields(written(**settings))["evaluates"] is evaluates


def test_evaluations_have_the_same_micro_batch_unless_stated():
    assert read(BASE).beside["eval_micro_batch"] == 2
    assert read(written(eval_batch_size=8)).beside["eval_micro_batch"] == 8


def test_segments_are_expandable_unless_the_environment_says_otherwise():
    path = Path("/nowhere/config.yml")
    command = ["axolotl", "train", str(path)]
    assert opened(command, Files({path: BASE})).understood(1).fields["expandable_segments"]
    stated = ["PYTORCH_ALLOC_CONF=expandable_segments:False", *command]
    script = Path("/nowhere/run.sh")
    texts = {path: BASE, script: " ".join(stated)}
    assert not opened([str(script)], Files(texts)).understood(1).fields["expandable_segments"]


@pytest.mark.parametrize(
    ("command", "nodes", "per_node"),
    [
        ("axolotl train {}", None, None),
        ("axolotl train {} --launcher accelerate -- --num_processes 4", 1, 4),
        ("axolotl train {} --launcher torchrun -- --nnodes=2 --nproc_per_node=8", 2, 8),
        ("axolotl train {} --launcher=torchrun", 1, 1),
        ("axolotl train {} --launcher python", 1, 1),
        ("accelerate launch --num_processes 2 -m axolotl.cli.train {}", 1, 2),
        ("torchrun --nproc_per_node 4 -m axolotl.cli.train {}", 1, 4),
    ],
)
def test_processes_of_a_command(command, nodes, per_node):
    path = Path("/nowhere/config.yml")
    source = opened(command.format(path).split(), Files({path: BASE}))
    assert source.format.name == "axolotl"
    assert (source.shape.nodes, source.shape.per_node) == (nodes, per_node)
    assert not problem_keys(source.understood(1), "unknown-key")


def test_options_of_the_command_win_over_the_file():
    path = Path("/nowhere/config.yml")
    command = ["axolotl", "train", str(path), "--micro-batch-size", "8", "--bf16=full"]
    found = opened(command, Files({path: BASE})).understood(1).fields
    assert (found["micro_batch"], found["precision"]) == (8, "none")


def test_other_commands_train_nothing():
    path = Path("/nowhere/config.yml")
    with pytest.raises(ConfigFileError, match="starts no training"):
        opened(["axolotl", "preprocess", str(path)], Files({path: BASE}))


PATTERN = "model.language_model.layers.[\\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj"


def test_a_pattern_of_modules_is_read_and_never_run():
    text = written(adapter="lora", lora_r=8, lora_alpha=16, lora_target_modules=PATTERN)
    found = read(text)
    assert found.fields["lora_targets"] == "up_proj,down_proj,gate_proj,q_proj,k_proj,v_proj,o_proj"
    assert "lora_target_modules" in problem_keys(found)
    evil = read(written(adapter="lora", lora_r=8, lora_alpha=16, lora_target_modules="(a+)+$" + "a" * 5000))
    assert evil.fields["lora_targets"] == "all-linear"


def test_optimizers_that_are_not_modelled_are_estimated_as_others():
    found = read(written(optimizer="adamw_torch_4bit"))
    assert found.fields["optimizer"] == "adamw_8bit"
    assert "optimizer" in problem_keys(found)
    assert fields(written(optimizer="muon"))["optimizer"] == "adamw_torch"


def test_nested_keys_are_looked_at():
    found = read(written(fsdp_version=2, fsdp_config={"mixed_precision_policy": "fp16", "nonsense": 1}))
    assert "fsdp_config.mixed_precision_policy" in problem_keys(found)
    unknown = next(each for each in found.problems if each.kind == "unknown-key")
    assert unknown.key == "fsdp_config.nonsense"
    assert unknown.place.line > 1


@pytest.mark.parametrize(
    "key",
    ["adapter", "load_in_8bit", "rl", "relora", "unfrozen_parameters", "tensor_parallel_size", "chunked_cross_entropy"],
)
def test_what_costs_memory_and_is_not_modelled(key):
    value = {"rl": "dpo", "adapter": "mora", "unfrozen_parameters": ["lm_head"], "tensor_parallel_size": 2}.get(
        key, True
    )
    assert key in problem_keys(read(written(**{key: value})))


def test_every_reading_says_that_the_stack_was_not_measured():
    found = next(each for each in read(BASE).problems if each.within == 0.05)
    assert (found.kind, found.severity) == ("assumption", Severity.NOTE)
    assert found.may_need_more
    assert found.may_need_less


REFUSED = [
    ("micro_batch_size", {"gradient_accumulation_steps": ...}),
    ("batch_size", {"batch_size": 8}),
    ("datasets", {"datasets": ...}),
    (
        "fsdp_config",
        {
            **{"adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True},
            **{"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}},
        },
    ),
    ("load_in_4bit", {"load_in_4bit": True}),
    ("load_in_4bit", {"adapter": "qlora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}),
    ("load_in_8bit", {"adapter": "qlora", "load_in_8bit": True, "load_in_4bit": True}),
    ("lora_r", {"adapter": "lora", "lora_target_linear": True}),
    ("lora_target_modules", {"adapter": "lora", "lora_r": 8, "lora_alpha": 16}),
    ("deepspeed", {"deepspeed": "deepspeed_configs/zero1.json", "fsdp": ["full_shard"]}),
    ("optimizer", {"optimizer": "adamw_8bit", "fsdp_version": 2, "fsdp_config": {"offload_params": False}}),
    ("optimizer", {"fsdp_config": {"offload_params": True}}),
    ("sample_packing", {"sample_packing": True, "rl": "dpo"}),
    ("attn_implementation", {"flash_attention": True}),
    ("attn_implementation", {"attn_implementation": "flash"}),
    ("activation_offloading", {"activation_offloading": True, "gradient_checkpointing": False}),
    ("relora", {"relora": True, "deepspeed": "deepspeed_configs/zero1.json"}),
    ("chunked_cross_entropy", {"chunked_cross_entropy": True, "cut_cross_entropy": True}),
    ("lora_mlp_kernel", {"adapter": "lora", "load_in_8bit": True, "lora_mlp_kernel": True}),
    ("lora_mlp_kernel", {"trust_remote_code": True, "lora_mlp_kernel": True}),
    (
        "gradient_checkpointing_kwargs",
        {"unfrozen_parameters": ["x"], "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    ("val_set_size", {"val_set_size": 0.1, "test_datasets": [{"path": "x"}]}),
    ("eval_steps", {"val_set_size": 0.1, "eval_steps": 5, "evals_per_epoch": 2}),
    ("batch_flattening", {"batch_flattening": True, "sample_packing": True}),
    ("context_parallel_size", {"context_parallel_size": 2, "attn_implementation": "sdpa"}),
    ("dp_shard_size", {"dp_shard_size": 2}),
]


@pytest.mark.parametrize(("key", "settings"), REFUSED)
def test_what_axolotl_refuses(key, settings):
    found = read(written(**settings), ranks=2)
    conflicts = [each for each in found.problems if each.kind == "conflict" and each.severity is Severity.ERROR]
    assert key in {each.key for each in conflicts}
    assert all(each.hint and each.source for each in conflicts)


def test_every_refusal_has_an_example():
    assert sorted(rule.key for rule in CONFLICTS) == sorted(key for key, _ in REFUSED)
    assert not problem_keys(read(BASE), "conflict")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"micro_batch_size": "many"}, "micro_batch_size is 'many', not a number"),
        ({"micro_batch_size": 0}, "an integer of at least 1"),
        ({"lora_dropout": [1], "adapter": "lora", "lora_r": 8}, "not a number"),
        ({"bf16": "perhaps"}, "not true or false"),
        ({"sequence_len": {"a": 1}}, "not a number"),
    ],
)
def test_a_value_that_cannot_be_used_names_file_and_line(settings, match):
    with pytest.raises(ConfigFileError, match=match) as caught:
        read(written(**settings))
    assert caught.value.file == "/nowhere/config.yml"
    assert caught.value.line > 0


def config(**chosen):
    return RunConfig(**{"model": "m", "stack": "axolotl", "padding": True, "seq_len": 2048, **chosen})


def settings_of(made):
    return yaml.safe_load(made["axolotl.yaml"])


def test_a_planned_configuration_is_written():
    chosen = config(method="qlora", lora_rank=8, sharding="ddp", expandable_segments=True, micro_batch=4)
    made = rendered(FORMAT, chosen, Target(per_node=4, dataset="my/data"))
    assert list(made) == ["axolotl.yaml", "launch.sh"]
    found = settings_of(made)
    assert found["adapter"] == "qlora"
    assert found["load_in_4bit"]
    assert found["lora_target_linear"]
    assert found["datasets"] == [{"path": "my/data", "type": "alpaca"}]
    assert "bnb_config_kwargs" not in found
    assert made["launch.sh"].splitlines()[-1] == (
        'exec axolotl train axolotl.yaml --launcher torchrun -- --nproc_per_node 4 "$@"'
    )


def test_what_is_written_asks_for_nothing_that_is_not_modelled():
    for chosen in (
        config(method="lora", kernels="liger", attention="flash_attention_2", sharding="ddp"),
        config(method="full", sharding="fsdp2", optimizer="adamw_torch_fused"),
        config(method="qlora", sharding="zero3", padding=False, packing=True),
    ):
        made = rendered(FORMAT, chosen, Target(per_node=2))
        path = Path("/nowhere/launch.sh")
        texts = {path.parent / name: text for name, text in made.items()}
        found = opened([str(path)], Files(texts)).understood(2)
        assert not [each for each in found.problems if each.kind != "assumption"]


def test_one_process_and_several_machines():
    one = rendered(FORMAT, config(expandable_segments=True), Target())
    assert "--launcher accelerate -- --num_processes 1" in one["launch.sh"]
    two = rendered(FORMAT, config(sharding="hsdp", expandable_segments=True), Target(nodes=2, per_node=8))
    assert "--launcher torchrun -- --nnodes 2 --nproc_per_node 8" in two["launch.sh"]
    assert (settings_of(two)["dp_replicate_size"], settings_of(two)["dp_shard_size"]) == (2, 8)


def test_lengths_that_are_no_multiple_say_so():
    assert settings_of(rendered(FORMAT, config(seq_len=1000), Target()))["pad_to_multiple_of"] == 8
    assert settings_of(rendered(FORMAT, config(seq_len=1001), Target()))["pad_to_multiple_of"] == 1


@pytest.mark.parametrize(
    ("field", "chosen"),
    [
        ("stack", {"stack": "trl", "loss_path": "full"}),
        ("loss_path", {"loss_path": "chunked"}),
        ("weights_dtype", {"weights_dtype": "fp32", "precision": "bf16"}),
        ("padding", {"padding": False, "micro_batch": 2}),
        ("lora_targets", {"lora_targets": "qv"}),
        ("prepare_kbit", {"method": "qlora", "prepare_kbit": True}),
        ("adapter_dtype", {"adapter_dtype": "fp16"}),
        ("optimizer", {"sharding": "fsdp2", "optimizer": "adamw_8bit"}),
        ("offload", {"sharding": "fsdp2", "offload": "optimizer"}),
        ("offload", {"sharding": "zero2", "offload": "optimizer+params"}),
    ],
)
def test_what_it_cannot_say_is_named(field, chosen):
    with pytest.raises(CannotExpressError) as caught:
        rendered(FORMAT, config(**chosen), Target(per_node=2 if "sharding" in chosen else 1))
    assert field in caught.value.fields


def test_pins_are_what_its_files_cannot_choose():
    assert pins("lora") == {"stack": "axolotl", "prepare_kbit": False, "padding": True, "packing": False}
