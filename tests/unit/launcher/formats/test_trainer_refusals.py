import json

import pytest

from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.sources import opened
from ftplan.verdicts import Severity


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def part_of(folder, arguments, **deepspeed):
    if deepspeed:
        (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, **deepspeed}), "utf-8")
        arguments = {**arguments, "deepspeed": "ds.json"}
    (folder / "args.json").write_text(json.dumps({"output_dir": "out", **arguments}), "utf-8")
    return opened(["args.json"], Files(), "transformers").understood(1)


def errors(part):
    return {problem.key for problem in part.problems if problem.severity is Severity.ERROR}


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"bf16": True, "fp16": True}, "fp16"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "load_best_model_at_end"),
    ],
)
def test_arguments_against_each_other(folder, arguments, key):
    assert errors(part_of(folder, arguments)) == {key}


def test_equal_strategies_are_fine(folder):
    assert not errors(part_of(folder, {"load_best_model_at_end": True, "eval_strategy": "steps"}))


@pytest.mark.parametrize(
    ("deepspeed", "key"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"gradient_clipping": 0.5}, "gradient_clipping"),
        ({"bf16": {"enabled": False}}, "bf16.enabled"),
        ({"fp16": {"enabled": True}}, "fp16.enabled"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr"),
    ],
)
def test_deepspeeds_file_must_say_what_the_arguments_do(folder, deepspeed, key):
    part = part_of(folder, {"bf16": True}, **deepspeed)
    assert errors(part) == {key}
    assert (part.fields["micro_batch"], part.fields["accumulation"]) == (8, 1)


def test_auto_and_equal_values_are_fine(folder):
    equal = {"train_micro_batch_size_per_gpu": 8, "gradient_clipping": 1.0, "bf16": {"enabled": "auto"}}
    assert not errors(part_of(folder, {"bf16": True}, **equal))


def test_zero3_cannot_look_for_a_batch(folder):
    part = part_of(folder, {"auto_find_batch_size": True}, gradient_clipping="auto")
    assert errors(part) == {"auto_find_batch_size"}


def test_arguments_alone_compute_in_full_precision(folder):
    fields = part_of(folder, {}).fields
    assert (fields["precision"], fields["loss_path"], fields["method"]) == ("none", "full", "full")
    assert "weights_dtype" not in fields


def test_accelerates_precision_counts_where_the_arguments_have_none(folder):
    (folder / "train.py").write_text("TrainingArguments('out', per_device_train_batch_size=2)\n", "utf-8")
    words = ["accelerate", "launch", "--mixed_precision", "bf16", "train.py"]
    assert opened(words, Files()).understood(1).fields["precision"] == "bf16"


def test_kwargs_inside_of_mappings_are_audited(folder):
    part = part_of(folder, {"gradient_checkpointing_kwargs": {"use_reentrant": True}})
    assert "gradient_checkpointing_kwargs.use_reentrant" in {each.key for each in part.problems}


def accelerate(folder, **fields):
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}), "utf-8")
    (folder / "acc.json").write_text(json.dumps({"distributed_type": "NO", **fields}), "utf-8")
    return opened(["acc.json"], Files())


def test_accelerate_refuses_what_deepspeeds_own_file_has(folder):
    inside = {"deepspeed_config_file": "ds.json", "zero_stage": 3}
    source = accelerate(folder, distributed_type="DEEPSPEED", mixed_precision="bf16", deepspeed_config=inside)
    part = source.understood(1)
    assert errors(part) == {"mixed_precision", "deepspeed_config.zero_stage"}
    assert part.fields["sharding"] == "zero2"


def test_accelerate_starts_one_process_for_no_distribution_whatever_the_number(folder):
    source = accelerate(folder, num_processes=8)
    assert (source.shape.nodes, source.shape.per_node, source.shape.total) == (1, 1, 1)
    assert source.understood(1).fields["sharding"] == "none"
