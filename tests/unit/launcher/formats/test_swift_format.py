from pathlib import Path

import pytest
import yaml

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.sources import opened
from ftplan.launcher.formats.swift import FORMAT, pins
from ftplan.launcher.formats.swift_rules import CONFLICTS, OTHERS
from ftplan.spec import RunConfig
from ftplan.verdicts import Severity

COMMAND = "swift sft --model Qwen/Qwen2.5-7B-Instruct --dataset data.jsonl --max_length 2048"


def source(options="", *, environment="", command=COMMAND, texts=None):
    path = Path("/nowhere/train.sh")
    named = {Path("/nowhere") / name: text for name, text in (texts or {}).items()}
    return opened([str(path)], Files({path: f"{environment} {command} {options}\n", **named}))


def read(options="", *, ranks=1, **more):
    return source(options, **more).understood(ranks)


def fields(options="", **more):
    return read(options, **more).fields


def keys(part, kind="unmodelled"):
    return {problem.key for problem in part.problems if problem.kind == kind}


def test_its_defaults():
    found = fields()
    assert found["model"] == "Qwen/Qwen2.5-7B-Instruct"
    assert (found["method"], found["lora_rank"], found["lora_alpha"], found["lora_dropout"]) == ("lora", 8, 32, 0.05)
    assert (found["lora_targets"], found["adapter_dtype"]) == ("all-linear", "fp32")
    assert (found["weights_dtype"], found["precision"]) == ("bf16", "bf16")
    assert (found["micro_batch"], found["accumulation"], found["seq_len"]) == (1, 16, 2048)
    assert found["gradient_checkpointing"]
    assert (found["attention"], found["optimizer"], found["kernels"]) == ("sdpa", "adamw_torch_fused", "none")
    assert (found["packing"], found["padding"], found["evaluates"]) == (False, False, False)
    assert (found["stack"], found["prepare_kbit"], found["expandable_segments"]) == ("swift", False, False)
    assert "sharding" not in found


@pytest.mark.parametrize(("batch", "ranks", "steps"), [(1, 1, 16), (4, 2, 2), (3, 2, 3), (16, 8, 1)])
def test_accumulation_makes_up_sixteen_samples(batch, ranks, steps):
    assert fields(f"--per_device_train_batch_size {batch}", ranks=ranks)["accumulation"] == steps


def test_options():
    found = fields(
        "--tuner_type lora --lora_rank 16 --lora_alpha 64 --lora_dropout 0 --target_modules q_proj v_proj "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --gradient_checkpointing false "
        "--attn_impl flash_attn --optim adamw_bnb_8bit --use_liger_kernel true --lora_dtype bfloat16"
    )
    assert (found["lora_rank"], found["lora_alpha"], found["lora_dropout"]) == (16, 64, 0.0)
    assert found["lora_targets"] == "q_proj,v_proj"
    assert (found["micro_batch"], found["accumulation"], found["padding"]) == (2, 4, True)
    assert not found["gradient_checkpointing"]
    assert (found["attention"], found["optimizer"]) == ("flash_attention_2", "adamw_bnb_8bit")
    assert (found["kernels"], found["adapter_dtype"]) == ("liger", "bf16")


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ("--train_type full", "full"),
        ("--sft_type full", "full"),
        ("--tuner_type full", "full"),
        ("--quant_method bnb --quant_bits 4", "qlora"),
        ("--quant_bits 4", "lora"),  # has no effect alone
        ("--quant_method bnb --quant_bits 8", "lora"),
        ("--quantization_bit 4", "qlora"),  # until 3.0 it was bitsandbytes
    ],
)
def test_methods(options, method):
    assert fields(options)["method"] == method


def test_quantization():
    found = fields("--quant_method bnb --quant_bits 4 --bnb_4bit_quant_type fp4 --bnb_4bit_use_double_quant false")
    assert (found["quantization"], found["double_quantization"]) == ("fp4", False)
    lone = read("--quant_bits 4")
    assert any("no effect" in each.message for each in lone.problems if each.kind == "conflict")
    assert "quant_method" in keys(read("--quant_method hqq --quant_bits 4"))


def test_sharded_four_bit_weights_need_a_float_storage():
    quantized = "--quant_method bnb --quant_bits 4 --fsdp fsdp2"
    assert "bnb_4bit_quant_storage" in keys(read(quantized, ranks=2))
    assert "bnb_4bit_quant_storage" not in keys(read(f"{quantized} --bnb_4bit_quant_storage bfloat16", ranks=2))
    assert "bnb_4bit_quant_storage" not in keys(read("--quant_method bnb --quant_bits 4"))


@pytest.mark.parametrize(
    ("options", "weights", "precision"),
    [
        ("--torch_dtype bfloat16", "bf16", "bf16"),
        ("--torch_dtype float16", "fp16", "fp16"),
        ("--torch_dtype float32", "fp32", "fp16"),
        ("--torch_dtype float32 --bf16 true", "fp32", "bf16"),
        ("--bf16 false --fp16 false", "bf16", "none"),
        ("--dtype fp16", "fp16", "fp16"),
    ],
)
def test_autocast_follows_the_weights(options, weights, precision):
    found = fields(options)
    assert (found["weights_dtype"], found["precision"]) == (weights, precision)


@pytest.mark.parametrize(
    ("options", "packing", "padding"),
    [
        ("--per_device_train_batch_size 4", False, True),
        ("", False, False),
        ("--packing true --attn_impl flash_attn", True, False),
        ("--padding_free true --attn_impl flash_attn --per_device_train_batch_size 4", False, False),
    ],
)
def test_which_batches_carry_a_mask(options, packing, padding):
    found = fields(options)
    assert (found["packing"], found["padding"]) == (packing, padding)


def test_packed_rows_may_have_a_length_of_their_own():
    assert fields("--packing true --attn_impl flash_attn --packing_length 8192")["seq_len"] == 8192
    assert fields("--packing_length 8192")["seq_len"] == 2048


def test_without_max_length_nothing_bounds_a_sample():
    part = read(command="swift sft --model m --dataset d")
    assert "seq_len" not in part.fields
    found = next(each for each in part.problems if each.kind == "unresolved")
    assert found.key == "max_length"
    assert found.may_need_more


@pytest.mark.parametrize(
    ("options", "sharding", "offload"),
    [
        ("--deepspeed zero1", "zero1", "none"),
        ("--deepspeed zero2", "zero2", "none"),
        ("--deepspeed zero2_offload", "zero2", "optimizer"),
        ("--deepspeed zero3", "zero3", "none"),
        ("--deepspeed zero3_offload", "zero3", "optimizer+params"),
        ("--deepspeed zero0", "ddp", "none"),
        ("--fsdp fsdp2", "fsdp2", "none"),
    ],
)
def test_named_presets(options, sharding, offload):
    found = fields(options, environment="NPROC_PER_NODE=2", ranks=2)
    assert (found["sharding"], found["offload"]) == (sharding, offload)


def test_presets_have_swifts_own_buckets():
    assert fields("--deepspeed zero2")["zero_reduce_bucket"] == 200_000_000
    assert fields("--deepspeed zero2")["zero_overlap"] is False
    assert "zero_reduce_bucket" not in fields("--deepspeed zero3")


def test_files_of_deepspeed_and_fsdp_are_read():
    stage = '{"zero_optimization": {"stage": 3}}'
    assert fields("--deepspeed ds.json", texts={"ds.json": stage})["sharding"] == "zero3"
    own = '{"fsdp": "shard_grad_op auto_wrap offload", "fsdp_config": {"fsdp_version": 2}}'
    found = fields("--fsdp mine.json", texts={"mine.json": own}, ranks=2)
    assert (found["sharding"], found["offload"]) == ("fsdp2-grad-op", "optimizer+params")
    keeps = '{"fsdp": "full_shard", "fsdp_config": {"reshard_after_forward": false}}'
    assert fields("--fsdp mine.json", texts={"mine.json": keeps}, ranks=2)["sharding"] == "fsdp2-grad-op"
    with pytest.raises(ConfigFileError, match=r"cannot read .*none\.json"):
        read("--fsdp none.json")


def test_fsdps_own_checkpointing_counts():
    assert fields("--fsdp fsdp2 --gradient_checkpointing false", ranks=2)["gradient_checkpointing"]


@pytest.mark.parametrize(
    ("options", "evaluates"),
    [
        ("", False),
        ("--split_dataset_ratio 0.01", True),
        ("--val_dataset v.jsonl", True),
        ("--val_dataset v.jsonl --eval_strategy no", False),
        ("--val_dataset v.jsonl --save_strategy no", False),
        ("--eval_strategy steps", False),
    ],
)
def test_evaluations_need_data(options, evaluates):
    assert fields(options)["evaluates"] is evaluates


def test_it_reads_yaml_with_an_environment_of_its_own():
    text = "model: m\ntuner_type: lora\nmax_length: 512\ndataset: [d]\nENV:\n  NPROC_PER_NODE: 4\n"
    for command in ("swift sft s.yaml", "swift sft --config s.yaml"):
        found = source(command=command, texts={"s.yaml": text})
        assert found.shape.per_node == 4
        assert found.understood(4).fields["seq_len"] == 512
        assert not keys(found.understood(4), "unknown-key")


@pytest.mark.parametrize(
    ("environment", "command", "nodes", "per_node"),
    [
        ("", COMMAND, 1, 1),
        ("CUDA_VISIBLE_DEVICES=0,1,2,3", COMMAND, 1, 1),
        ("NPROC_PER_NODE=4", COMMAND, 1, 4),
        ("NNODES=2 NPROC_PER_NODE=8", COMMAND, 2, 8),
        ("", "torchrun --nproc_per_node 2 swift/cli/sft.py --model m --dataset d", 1, 2),
        ("", "accelerate launch --num_processes 2 swift/cli/sft.py --model m --dataset d", 1, 2),
        ("", "python -m swift.cli.sft --model m --dataset d", 1, 1),
    ],
)
def test_processes(environment, command, nodes, per_node):
    found = source(environment=environment, command=command)
    assert found.format.name == "swift"
    assert (found.shape.nodes, found.shape.per_node) == (nodes, per_node)


def devices(environment, options=""):
    part = read(options, environment=environment)
    return [(each.severity, each.may_need_less) for each in part.problems if each.kind == "devices"]


def test_one_process_on_several_cards_spreads_the_model():
    assert devices("") == [(Severity.NOTE, False)]
    assert devices("CUDA_VISIBLE_DEVICES=0") == []
    assert devices("CUDA_VISIBLE_DEVICES=0,1") == [(Severity.WARNING, True)]
    assert devices("CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2") == []
    assert devices("CUDA_VISIBLE_DEVICES=0,1,2,3 NPROC_PER_NODE=2") == [(Severity.WARNING, True)]
    assert devices("CUDA_VISIBLE_DEVICES=0,1", "--deepspeed zero2") == [(Severity.ERROR, True)]


def test_checkpoints_are_reentrant_but_under_ddp():
    key = "gradient_checkpointing_kwargs"
    assert key in keys(read(ranks=2), "assumption")
    assert key not in keys(read(), "assumption")
    assert key not in keys(read("--deepspeed zero2", ranks=2), "assumption")
    stated = "--gradient_checkpointing_kwargs '{\"use_reentrant\": false}'"
    assert key in keys(read(stated), "assumption")
    assert key in keys(read(f"{stated} --deepspeed zero3", ranks=2))


def test_the_vision_tower_has_checkpoints_of_its_own():
    assert "vit_gradient_checkpointing" in keys(read("--vit_gradient_checkpointing false"))
    assert "vit_gradient_checkpointing" not in keys(read("--vit_gradient_checkpointing true"))


def test_only_logits_of_answers_are_computed():
    assert "use_logits_to_keep" in keys(read(), "assumption")
    assert "use_logits_to_keep" not in keys(read("--use_logits_to_keep false"), "assumption")
    assert "use_logits_to_keep" not in keys(read("--use_liger_kernel true"), "assumption")


def test_older_names():
    part = read(command="swift sft --model_id_or_path m --dataset d --max_length 64 --lora_target_modules ALL")
    assert (part.fields["model"], part.fields["lora_targets"]) == ("m", "all-linear")
    assert keys(part, "renamed-key") == {"model_id_or_path", "lora_target_modules"}
    assert fields("--use_flash_attn true")["attention"] == "flash_attention_2"


def test_targets_that_are_patterns_or_embeddings():
    part = read(r"--target_regex '^model.layers.\d+.(self_attn).(q|v)_proj$'")
    assert part.fields["lora_targets"] == "q_proj,v_proj"
    assert "target_regex" in keys(part)
    assert "target_modules" in keys(read("--target_modules all-linear all-embedding"))


@pytest.mark.parametrize(
    "options",
    [
        "--tuner_type longlora",
        "--freeze_vit false",
        "--sequence_parallel_size 2",
        "--use_galore true",
        "--attn_impl flex_attention",
        "--task_type embedding",
    ],
)
def test_what_costs_memory_and_is_not_modelled(options):
    assert options.split()[0].lstrip("-") in keys(read(options))


def test_every_reading_says_that_the_stack_was_not_measured():
    found = next(each for each in read().problems if each.within == 0.05)
    assert (found.kind, found.severity, found.may_need_more, found.may_need_less) == (
        "assumption",
        Severity.NOTE,
        True,
        True,
    )


REFUSED = [
    ("model", "", "swift sft --dataset d"),
    ("dataset", "", "swift sft --model m"),
    ("attn_impl", "--packing true", COMMAND),
    ("deepspeed", "--deepspeed zero2 --fsdp fsdp2", COMMAND),
    ("quant_bits", "--quant_method bnb", COMMAND),
    ("quant_bits", "--quant_method bnb --quant_bits 3", COMMAND),
    ("lazy_tokenize", "--lazy_tokenize true --packing true", COMMAND),
    ("lazy_tokenize", "--lazy_tokenize true --streaming true", COMMAND),
    ("warmup_ratio", "--warmup_ratio 0.1 --warmup_steps 5", COMMAND),
    ("save_only_model", "--save_only_model true --fsdp fsdp2", COMMAND),
]


@pytest.mark.parametrize(("key", "options", "command"), REFUSED)
def test_what_swift_refuses(key, options, command):
    part = read(options, command=command)
    found = [each for each in part.problems if each.kind == "conflict" and each.severity is Severity.ERROR]
    assert key in {each.key for each in found}
    assert all(each.hint and each.source for each in found)


def test_every_refusal_has_an_example():
    assert sorted(rule.key for rule in CONFLICTS) == sorted(key for key, _, _ in REFUSED)
    assert not keys(read(), "conflict")


@pytest.mark.parametrize("key", OTHERS)
def test_other_trainers_have_files_of_their_own(key):
    with pytest.raises(ConfigFileError, match=f"{key} is of"):
        read(f"--{key} 4")


def test_other_commands_train_nothing():
    for command in (
        "swift rlhf --model m --rlhf_type dpo",
        "swift infer --model m",
        "torchrun swift/cli/rlhf.py --a b",
    ):
        with pytest.raises(ConfigFileError, match="starts no training"):
            read(command=command)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--lora_rank many", "lora_rank is 'many', not a number"),
        ("--per_device_train_batch_size 0", "an integer of at least 1"),
        ("--packing perhaps", "not true or false"),
    ],
)
def test_a_value_that_cannot_be_used_names_file_and_line(options, match):
    with pytest.raises(ConfigFileError, match=match) as caught:
        read(options)
    assert (caught.value.file, caught.value.line) == ("/nowhere/train.sh", 1)


def test_a_value_that_only_a_shell_knows_is_said_so():
    part = read("--gradient_accumulation_steps $(expr 32 / 2)")
    assert part.fields["accumulation"] == 16
    assert "gradient_accumulation_steps" in keys(part, "unresolved")


def config(**chosen):
    return RunConfig(**{"model": "m", "stack": "swift", **chosen})


def settings_of(made):
    return yaml.safe_load(made["swift.yaml"])


def test_a_planned_configuration_is_written():
    chosen = config(method="qlora", sharding="ddp", micro_batch=2, padding=True, expandable_segments=True)
    made = rendered(FORMAT, chosen, Target(nodes=2, per_node=4, dataset="my.jsonl"))
    assert list(made) == ["swift.yaml", "launch.sh"]
    found = settings_of(made)
    assert (found["tuner_type"], found["quant_method"], found["quant_bits"]) == ("lora", "bnb", 4)
    assert (found["dataset"], found["max_length"]) == (["my.jsonl"], 1024)
    assert made["launch.sh"].splitlines()[-6:] == [
        'cd "$(dirname "$0")"',
        "export CUDA_VISIBLE_DEVICES=0,1,2,3",
        "export NPROC_PER_NODE=4",
        "export NNODES=2",
        "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        'exec swift sft swift.yaml "$@"',
    ]


def test_one_process_sees_one_card():
    assert "CUDA_VISIBLE_DEVICES=0\n" in rendered(FORMAT, config(), Target())["launch.sh"]


def test_what_is_written_asks_for_nothing_that_is_not_modelled():
    for chosen, ranks in (
        (config(), 1),
        (config(method="full", sharding="zero3", kernels="liger"), 2),
        (config(method="qlora", sharding="fsdp2"), 2),
        (config(packing=True, attention="flash_attention_2", sharding="ddp"), 2),
    ):
        made = rendered(FORMAT, chosen, Target(per_node=ranks))
        path = Path("/nowhere/launch.sh")
        texts = {path.parent / name: text for name, text in made.items()}
        found = opened([str(path)], Files(texts)).understood(ranks)
        assert not [each for each in found.problems if each.kind != "assumption"]


@pytest.mark.parametrize(
    ("field", "chosen"),
    [
        ("stack", {"stack": "llamafactory"}),
        ("loss_path", {"loss_path": "chunked"}),
        ("padding", {"padding": True}),
        ("packing", {"packing": True, "attention": "sdpa"}),
        ("padding", {"micro_batch": 2}),
        ("lora_targets", {"lora_targets": "qv"}),
        ("prepare_kbit", {"method": "qlora", "prepare_kbit": True}),
        ("adapter_dtype", {"adapter_dtype": "fp16"}),
        ("sharding", {"sharding": "hsdp"}),
        ("offload", {"sharding": "fsdp2", "offload": "optimizer"}),
    ],
)
def test_what_it_cannot_say_is_named(field, chosen):
    with pytest.raises(CannotExpressError) as caught:
        rendered(FORMAT, config(**chosen), Target(per_node=2 if "sharding" in chosen else 1))
    assert field in caught.value.fields


def test_pins_are_what_its_files_cannot_choose():
    assert pins("lora") == {"stack": "swift", "prepare_kbit": False}
