import json

import pytest
import yaml
from written import about, fields, problems_of, said_by

from ftplan.errors import ConfigFileError
from ftplan.verdicts import Severity

BASE = {"model_name_or_path": "Qwen/Qwen2.5-7B", "stage": "sft", "do_train": True, "output_dir": "o", "bf16": True}
ZERO = {stage: json.dumps({"zero_optimization": {"stage": stage}}) for stage in (2, 3)}


def said(*, ranks=1, zero=0, environment="", **settings):
    content = {key: value for key, value in {**BASE, **settings}.items() if value is not None}
    if zero:
        content["deepspeed"] = "ds.json"
    files = {"train.yaml": yaml.safe_dump(content, sort_keys=False), "ds.json": ZERO.get(zero, "{}")}
    if environment:
        files = {"run.sh": f"{environment} llamafactory-cli train train.yaml\n", **files}
    return said_by(files, ranks=ranks)


def test_defaults():
    part = said()
    assert part.fields == {
        "stack": "llamafactory",
        "adapter_dtype": "fp32",
        "prepare_kbit": False,
        "model": "Qwen/Qwen2.5-7B",
        "method": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_targets": "all-linear",
        "lora_dropout": 0.0,
        "seq_len": 2048,
        "attention": "sdpa",
        "kernels": "none",
        "gradient_checkpointing": True,
        "evaluates": False,
        "weights_dtype": "bf16",
        "precision": "bf16",
        "packing": False,
        "padding": True,
        "expandable_segments": False,
        "micro_batch": 8,
        "accumulation": 1,
        "optimizer": "adamw_torch_fused",
        "sync_each_batch": False,
    }
    assert part.problems == ()


def test_fields_know_their_keys_and_lines():
    part = said(cutoff_len=512)
    assert part.origins["seq_len"].place.line == 6
    assert part.origins["lora_targets"].key == "lora_target"


def test_adapters():
    part = said(lora_rank=16, lora_target="q_proj,v_proj", lora_dropout=0.05)
    names = ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout")
    assert list(fields(part, *names).values()) == [16, 32, "q_proj,v_proj", 0.05]
    assert said(lora_target=["q_proj", "k_proj"]).fields["lora_targets"] == "q_proj,k_proj"
    assert said(lora_target="q_proj,all").fields["lora_targets"] == "all-linear"


class TestQuantization:
    def test_four_bits(self):
        part = said(quantization_bit=4, double_quantization=False, quantization_type="fp4")
        assert fields(part, "method", "quantization", "double_quantization") == {
            "method": "qlora",
            "quantization": "fp4",
            "double_quantization": False,
        }
        assert part.origins["method"].key == "quantization_bit"

    def test_nf4_doubly_is_the_default(self):
        part = said(quantization_bit=4)
        assert fields(part, "quantization", "double_quantization") == {
            "quantization": "nf4",
            "double_quantization": True,
        }

    @pytest.mark.parametrize("settings", [{"quantization_bit": 8}, {"quantization_bit": 3},
                                          {"quantization_bit": 4, "quantization_method": "hqq"},
                                          {"quantization_bit": 8, "quantization_method": "eetq"}])  # fmt: skip
    def test_other_bits_and_methods_are_estimated_as_16_and_said_to_be(self, settings):
        part = said(**settings)
        assert part.fields["method"] == "lora"
        (problem,) = problems_of(part, "unmodelled")
        assert problem.key == "quantization_bit"
        assert problem.may_need_less


class TestDtypes:
    @pytest.mark.parametrize(
        ("settings", "weights", "precision"),
        [
            ({"bf16": True}, "bf16", "bf16"),
            ({"bf16": None, "fp16": True}, "fp16", "fp16"),
            ({"bf16": None}, "bf16", "none"),
            ({"bf16": None, "finetuning_type": "full"}, "fp32", "none"),
            ({"bf16": None, "finetuning_type": "full", "pure_bf16": True}, "bf16", "none"),
            ({"finetuning_type": "full", "pure_bf16": True}, "bf16", "none"),
            ({"finetuning_type": "full"}, "bf16", "bf16"),
        ],
    )
    def test_of_weights_and_of_autocast(self, settings, weights, precision):
        assert fields(said(**settings), "weights_dtype", "precision") == {
            "weights_dtype": weights,
            "precision": precision,
        }

    def test_pure_bf16_is_where_the_precision_came_from(self):
        assert said(pure_bf16=True).origins["precision"].key == "pure_bf16"

    def test_accelerate_s_variable_counts_where_the_file_says_nothing(self):
        part = said(bf16=None, environment="ACCELERATE_MIXED_PRECISION=fp16")
        assert fields(part, "weights_dtype", "precision") == {"weights_dtype": "fp16", "precision": "fp16"}


@pytest.mark.parametrize(
    ("settings", "packing", "padding"),
    [
        ({}, False, True),
        ({"per_device_train_batch_size": 1}, False, False),
        ({"packing": True}, False, False),
        ({"neat_packing": True}, True, False),
        ({"packing": True, "neat_packing": True}, True, False),
        ({"stage": "pt"}, False, False),
        ({"stage": "pt", "packing": False}, False, True),
    ],
)
def test_packing_and_padding(settings, packing, padding):
    assert fields(said(**settings), "packing", "padding") == {"packing": packing, "padding": padding}


@pytest.mark.parametrize(
    ("asked", "attention"),
    [("auto", "sdpa"), ("sdpa", "sdpa"), ("disabled", "eager"), ("fa2", "flash_attention_2"),
     (True, "flash_attention_2"), (False, "sdpa"), ("off", "eager")],
)  # fmt: skip
def test_attention(asked, attention):
    part = said(flash_attn=asked)
    assert part.fields["attention"] == attention
    assert problems_of(part, "unmodelled") == []


def test_attention_that_is_not_modelled():
    part = said(flash_attn="fa3")
    assert part.fields["attention"] == "sdpa"
    assert about(part, "flash_attn") == ["flash_attn is not modelled: fa3 is estimated as sdpa"]


def test_kernels_checkpointing_and_evaluation():
    part = said(enable_liger_kernel=True, disable_gradient_checkpointing=True, eval_strategy="steps", val_size=0.1)
    assert fields(part, "kernels", "gradient_checkpointing", "evaluates") == {
        "kernels": "liger",
        "gradient_checkpointing": False,
        "evaluates": True,
    }
    assert said(do_eval=True, val_size=0.1).fields["evaluates"] is True


class TestExpandableSegments:
    """llamafactory-cli sets them for what it starts through torchrun."""

    @pytest.mark.parametrize(
        ("environment", "ranks", "expected"),
        [
            ("", 1, False),
            ("", 2, True),
            ("X=1", 2, True),
            ("FORCE_TORCHRUN=1", 1, True),
            ("OPTIM_TORCH=0", 2, False),
            ("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", 1, True),
            ("PYTORCH_ALLOC_CONF=expandable_segments:True", 1, True),
            ("PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128", 1, False),
        ],
    )
    def test_by_llamafactory_cli(self, environment, ranks, expected):
        assert said(environment=environment, ranks=ranks).fields["expandable_segments"] is expected

    @pytest.mark.parametrize("command", ["torchrun --nproc_per_node 2 src/train.py train.yaml",
                                         "accelerate launch --num_processes 2 src/train.py train.yaml"])  # fmt: skip
    def test_not_by_other_launchers(self, command):
        part = said_by({"run.sh": command, "train.yaml": yaml.safe_dump(BASE)}, ranks=2, framework="llamafactory")
        assert part.fields["expandable_segments"] is False


@pytest.mark.parametrize(
    ("settings", "zero", "key", "part"),
    [
        ({"finetuning_type": "full", "quantization_bit": 4}, 0, "quantization_bit", "only for LoRA"),
        ({"finetuning_type": "full", "pure_bf16": True}, 3, "pure_bf16", "ZeRO-3"),
        ({"predict_with_generate": True}, 3, "predict_with_generate", "ZeRO-3"),
        ({"use_unsloth": True}, 3, "use_unsloth", "ZeRO-3"),
        ({"quantization_bit": 8}, 3, "quantization_bit", "4-bit"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, 3, "quantization_method", "HQQ"),
        ({"use_galore": True, "finetuning_type": "full"}, 2, "use_galore", "DeepSpeed"),
        ({"use_apollo": True, "finetuning_type": "full"}, 2, "use_galore", "DeepSpeed"),
        ({"fp8": True, "quantization_bit": 4}, 0, "fp8", "quantization"),
        ({"neat_packing": True, "stage": "pt"}, 0, "neat_packing", "sft"),
        ({"adapter_name_or_path": "a", "finetuning_type": "full"}, 0, "adapter_name_or_path", "LoRA"),
        ({"do_eval": True}, 0, "val_size", "evaluation"),
        ({"eval_dataset": "x", "val_size": 0.1}, 0, "val_size", "both"),
        ({"use_galore": True}, 0, "finetuning_type", "GaLore"),
        ({"use_badam": True}, 0, "finetuning_type", "BAdam"),
        ({"finetuning_type": "full", "use_dora": True}, 0, "finetuning_type", "use_dora"),
        ({"finetuning_type": "full", "loraplus_lr_ratio": 16.0}, 0, "finetuning_type", "loraplus"),
        ({"pissa_init": True, "quantization_bit": 4}, 0, "pissa_init", "16-bit"),
        ({"pissa_init": True}, 3, "pissa_init", "ZeRO-3"),
        ({"stage": "stf"}, 0, "stage", "'stf' is none"),
        ({"finetuning_type": "loar"}, 0, "finetuning_type", "'loar' is none"),
        ({"flash_attn": "flash_attention_2"}, 0, "flash_attn", "is none"),
    ],
)
def test_what_its_own_parser_refuses(settings, zero, key, part):
    (problem,) = [each for each in problems_of(said(zero=zero, ranks=2, **settings), "conflict") if each.key == key]
    assert problem.severity is Severity.ERROR
    assert part in problem.message
    assert problem.hint
    assert "LLaMA-Factory" in problem.source


@pytest.mark.parametrize(
    ("settings", "zero"),
    [
        ({"finetuning_type": "full", "pure_bf16": True}, 2),
        ({"finetuning_type": "full", "pure_bf16": True}, 0),
        ({"quantization_bit": 4}, 3),
        ({"quantization_bit": 8}, 2),
        ({"adapter_name_or_path": "a"}, 0),
        ({"do_eval": True, "val_size": 0.1}, 0),
        ({"do_eval": True, "eval_dataset": "x"}, 0),
        ({"use_galore": True, "finetuning_type": "full"}, 0),
        ({"neat_packing": True}, 0),
        ({"use_dora": True, "loraplus_lr_ratio": 16.0}, 0),
        ({"pissa_init": True}, 2),
    ],
)
def test_what_it_takes(settings, zero):
    assert problems_of(said(zero=zero, ranks=2, **settings), "conflict") == []


@pytest.mark.parametrize(
    ("environment", "ranks", "refused"),
    [("X=1", 1, True), ("FORCE_TORCHRUN=1", 1, False), ("X=1", 2, False), ("", 1, False)],
)
def test_deepspeed_needs_a_process_group(environment, ranks, refused):
    part = said(zero=2, environment=environment, ranks=ranks)
    assert [each.key for each in problems_of(part, "conflict")] == (["deepspeed"] if refused else [])


@pytest.mark.parametrize("kind", ["freeze", "oft"])
def test_other_ways_to_train_are_not_modelled(kind):
    (message,) = about(said(finetuning_type=kind), "finetuning_type")
    assert kind in message


@pytest.mark.parametrize("stage", ["rm", "ppo", "dpo", "kto"])
def test_other_stages_are_not_modelled(stage):
    (message,) = about(said(stage=stage), "stage")
    assert stage in message


@pytest.mark.parametrize("stage", ["sft", "pt"])
def test_stages_that_are(stage):
    assert about(said(stage=stage), "stage") == []


@pytest.mark.parametrize("do_train", [None, False])
def test_what_trains_nothing_is_no_training(do_train):
    with pytest.raises(ConfigFileError, match="do_train is not set") as caught:
        said(do_train=do_train)
    assert caught.value.field == "do_train"
    assert caught.value.file == "train.yaml"


def test_costly_keys_make_problems_and_harmless_values_none():
    (problem,) = problems_of(said(use_galore=True, finetuning_type="full"), "unmodelled")
    assert problem.key == "use_galore"
    assert problem.place.line == 6
    assert problems_of(said(use_galore=False, use_dora=False), "unmodelled") == []


def test_an_unknown_key_comes_with_the_nearest():
    (problem,) = problems_of(said(cutof_len=512), "unknown-key")
    assert "cutoff_len" in problem.hint


OLD = (
    "CUDA_VISIBLE_DEVICES=0 python src/train_bash.py --stage sft --do_train --model_name_or_path Qwen/Qwen-7B"
    " --dataset x --template qwen --finetuning_type lora --lora_target q_proj,v_proj --output_dir o"
    " --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --max_length 512 --fp16 --plot_loss"
)


def test_command_lines_of_old_articles():
    part = said_by({"run.sh": OLD})
    expected = {
        "model": "Qwen/Qwen-7B",
        "lora_targets": "q_proj,v_proj",
        "micro_batch": 4,
        "accumulation": 8,
        "seq_len": 512,
        "precision": "fp16",
        "weights_dtype": "fp16",
        "expandable_segments": False,
    }
    assert fields(part, *expected) == expected
    assert problems_of(part, "conflict", "unmodelled") == []


def test_overrides_of_the_command_stand_over_the_file(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump({**BASE, "cutoff_len": 512}))
    part = said_by({}, "llamafactory-cli", "train", str(file), "cutoff_len=1024", "lora_rank=4")
    assert fields(part, "seq_len", "lora_rank") == {"seq_len": 1024, "lora_rank": 4}


def test_json_with_comments():
    text = '{\n // the model\n "model_name_or_path": "m", "stage": "sft", "do_train": true, "cutoff_len": 256,\n}'
    part = said_by({"train.json": text})
    assert part.fields["seq_len"] == 256


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": "eight"}, "lora_rank"),
        ({"cutoff_len": 2048.5}, "cutoff_len"),
        ({"lora_dropout": "a little"}, "lora_dropout"),
        ({"model_name_or_path": ["m"]}, "model_name_or_path"),
        ({"disable_gradient_checkpointing": "perhaps"}, "disable_gradient_checkpointing"),
        ({"lora_target": [["q_proj"]]}, "lora_target"),
    ],
)
def test_a_bad_value_is_an_error_that_names_key_and_line(settings, field):
    with pytest.raises(ConfigFileError) as caught:
        said(**settings)
    assert caught.value.field == field
    assert caught.value.line
