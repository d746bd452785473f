import json

import pytest
from written import fields, problems_of, said_by

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.trainer import eval_key, rate_of
from ftplan.launcher.formats.versions import release
from ftplan.spec import RunConfig
from ftplan.verdicts import Severity


def said(ds=None, **arguments):
    content = {"output_dir": "o", "model_name_or_path": "m", **arguments}
    files = {"args.json": json.dumps(content, indent=1)}
    if ds is not None:
        files["ds.json"] = json.dumps(ds)
    return said_by(files, ranks=2)


def test_defaults_are_transformers_own():
    names = ("micro_batch", "accumulation", "optimizer", "gradient_checkpointing", "kernels", "evaluates", "padding")
    assert fields(said(), *names) == {
        "micro_batch": 8,
        "accumulation": 1,
        "optimizer": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "kernels": "none",
        "evaluates": False,
        "padding": True,
    }


def test_each_field_knows_the_key_and_line_that_it_came_from():
    part = said(per_device_train_batch_size=2, gradient_accumulation_steps=4, bf16=True)
    assert part.origins["micro_batch"].place.line == 4
    assert part.origins["precision"].key == "bf16"
    assert part.origins["optimizer"].value is None


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_has_an_old_and_a_new_name(key):
    assert said(**{key: True}).fields["gradient_checkpointing"] is True


@pytest.mark.parametrize(
    ("key", "value", "evaluates"),
    [("eval_strategy", "steps", True), ("evaluation_strategy", "epoch", True), ("eval_strategy", "no", False),
     ("eval_strategy", False, False)],
)  # fmt: skip
def test_evaluations_by_old_and_new_name(key, value, evaluates):
    assert said(**{key: value}).fields["evaluates"] is evaluates


def test_an_evaluation_has_a_batch_of_its_own():
    assert said(per_device_train_batch_size=1).beside["eval_micro_batch"] == 8
    assert said(per_device_eval_batch_size=2).beside["eval_micro_batch"] == 2


def test_the_learning_rate_is_kept_beside():
    assert said(learning_rate="2e-4").beside["learning_rate"] == 2e-4
    assert "learning_rate" not in said().beside


def test_both_dtypes_are_refused():
    (problem,) = problems_of(said(bf16=True, fp16=True), "conflict")
    assert (problem.key, problem.severity) == ("fp16", Severity.ERROR)


ZERO2 = {"zero_optimization": {"stage": 2}}


def test_a_deepspeed_file_decides_the_sharding():
    part = said(ZERO2, deepspeed="ds.json")
    assert part.fields["sharding"] == "zero2"
    assert part.origins["sharding"].place.file == "ds.json"


@pytest.mark.parametrize(("comment", "refused"), [("", 0), ("// a comment\n", 1)])
def test_comments_in_a_deepspeed_file_are_refused_as_transformers_reads_it_with_json(comment, refused):
    texts = {
        "args.json": json.dumps({"output_dir": "o", "deepspeed": "ds.json"}),
        "ds.json": comment + json.dumps(ZERO2),
    }
    part = said_by(texts, ranks=2)
    assert part.fields["sharding"] == "zero2"
    assert ["comments" in each.message for each in problems_of(part, "conflict")] == [True] * refused


def test_deepspeed_as_a_mapping_in_the_file_itself():
    part = said(deepspeed={"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})
    assert fields(part, "sharding", "offload") == {"sharding": "zero3", "offload": "optimizer"}


def test_a_batch_of_deepspeed_s_file_that_differs_is_refused_and_the_trainers_counts():
    part = said(
        {**ZERO2, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1},
        deepspeed="ds.json",
        per_device_train_batch_size=2,
    )
    (problem,) = problems_of(part, "conflict")
    assert problem.key == "train_micro_batch_size_per_gpu"
    assert problem.message == "train_micro_batch_size_per_gpu is 4 for DeepSpeed, and per_device_train_batch_size is 2"
    assert problem.place.file == "ds.json"
    assert part.fields["micro_batch"] == 2


@pytest.mark.parametrize(
    ("arguments", "sharding", "offload"),
    [
        ({"fsdp": True}, "fsdp2", "none"),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}, "fsdp2-grad-op", "none"),
        ({"fsdp": True, "fsdp_config": {"cpu_offload": True}}, "fsdp2", "optimizer+params"),
        ({"fsdp": "full_shard auto_wrap"}, "fsdp2", "none"),
        ({"fsdp": "full_shard offload"}, "fsdp2", "optimizer+params"),
        ({"fsdp": "['shard_grad_op', 'auto_wrap']"}, "fsdp2-grad-op", "none"),
        ({"fsdp": "hybrid_shard"}, "hsdp", "none"),
        ({"fsdp": "hybrid_shard_zero2"}, "hsdp", "none"),
    ],
)
def test_fsdp_by_new_and_old_words(arguments, sharding, offload):
    assert fields(said(**arguments), "sharding", "offload") == {"sharding": sharding, "offload": offload}


@pytest.mark.parametrize("fsdp", [False, "", "false", None])
def test_no_fsdp(fsdp):
    assert "sharding" not in said(fsdp=fsdp).fields


def test_fsdp_1_is_an_assumption():
    (problem,) = problems_of(said(fsdp=True, fsdp_config={"version": 1}), "assumption")
    assert problem.within


def test_an_fsdp_config_of_its_own_file():
    files = {
        "args.json": '{"output_dir": "o", "model_name_or_path": "m", "fsdp": true, "fsdp_config": "fsdp.json"}',
        "fsdp.json": '{"version": 2, "reshard_after_forward": false}',
    }
    assert said_by(files, ranks=2).fields["sharding"] == "fsdp2-grad-op"


@pytest.mark.parametrize("config", [{"gradient_accumulation_kwargs": {"sync_each_batch": True}},
                                    '{"gradient_accumulation_kwargs": {"sync_each_batch": true}}'])  # fmt: skip
def test_gradients_reduced_after_each_micro_batch(config):
    assert said(accelerator_config=config).fields["sync_each_batch"] is True


def test_without_it_they_are_reduced_once_a_step():
    assert said(accelerator_config={"split_batches": False}).fields["sync_each_batch"] is False


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
        ({"gradient_accumulation_steps": 1.5}, "gradient_accumulation_steps"),
        ({"bf16": "perhaps"}, "bf16"),
        ({"optim": ["adamw"]}, "optim"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_key(arguments, field):
    with pytest.raises(ConfigFileError) as caught:
        said(**arguments)
    assert caught.value.field == field


def test_an_fsdp_config_that_is_none_is_an_error():
    with pytest.raises(ConfigFileError, match="no mapping"):
        said(fsdp=True, fsdp_config=[1])


def test_names_of_releases():
    assert release("4.41.0.dev0") == (4, 41, 0)
    assert eval_key("4.40.2") == "evaluation_strategy"
    assert eval_key("4.41") == eval_key("") == "eval_strategy"


@pytest.mark.parametrize(("method", "rate"), [("lora", 1e-4), ("full", 1e-5)])
def test_the_usual_learning_rate_where_none_is_asked_for(method, rate):
    config = RunConfig(model="m", method=method)
    assert rate_of(config, Target()) == rate
    assert rate_of(config, Target(learning_rate=3e-4)) == 3e-4


def test_every_format_is_under_its_own_name():
    assert {name: each.name for name, each in FORMATS.items()} == {name: name for name in FORMATS}
    assert {"llamafactory", "deepspeed", "accelerate", "transformers"} <= FORMATS.keys()
    assert all(each.title for each in FORMATS.values())
