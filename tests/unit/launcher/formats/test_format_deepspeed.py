import json
from pathlib import Path

import pytest
from written import fields, problems_of, said_by

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats import deepspeed
from ftplan.launcher.formats.document import parse_document
from ftplan.spec import RunConfig
from ftplan.verdicts import Severity


def parsed(**content):
    return deepspeed.parse(parse_document(json.dumps(content), Path("ds.json")))


def zero(stage, **more):
    return parsed(zero_optimization={"stage": stage, **more})


@pytest.mark.parametrize(("stage", "sharding"), [(1, "zero1"), (2, "zero2"), (3, "zero3")])
def test_a_stage_is_a_sharding(stage, sharding):
    part = zero(stage)
    assert fields(part, "sharding", "offload") == {"sharding": sharding, "offload": "none"}
    assert part.origins["sharding"].place.line == 1
    assert part.problems == ()


def test_without_zero_every_rank_keeps_masters_that_are_not_modelled():
    part = parsed(train_micro_batch_size_per_gpu=1)
    assert part.fields["sharding"] == "ddp"
    (problem,) = part.problems
    assert (problem.kind, problem.may_need_more, problem.may_need_less) == ("unmodelled", True, False)


def test_a_batch_that_is_stated_counts_and_one_that_is_auto_is_the_trainers():
    part = parsed(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps="auto", zero_optimization={"stage": 2})
    assert part.fields["micro_batch"] == 4
    assert part.origins["micro_batch"].key == "train_micro_batch_size_per_gpu"
    assert "accumulation" not in part.fields


@pytest.mark.parametrize(("name", "other"), [("bf16", "fp16"), ("fp16", "bf16")])
def test_the_dtype_that_is_enabled_is_autocast_s(name, other):
    part = parsed(zero_optimization={"stage": 2}, **{name: {"enabled": True}, other: {"enabled": "auto"}})
    assert part.fields["precision"] == name
    assert part.origins["precision"].key == f"{name}.enabled"


def test_auto_leaves_the_dtype_to_the_trainer():
    assert "precision" not in parsed(zero_optimization={"stage": 2}, bf16={"enabled": "auto"}).fields


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [
        (2, {"offload_optimizer": {"device": "cpu"}}, "optimizer"),
        (3, {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}, "optimizer+params"),
        (3, {"offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}}, "none"),
        (2, {"cpu_offload": True}, "optimizer"),
        (2, {"cpu_offload": False}, "none"),
    ],
)
def test_offload_by_its_new_and_old_names(stage, offload, expected):
    assert zero(stage, **offload).fields["offload"] == expected


def test_parameters_alone_are_estimated_with_the_optimizer_and_said_to_be():
    part = zero(3, offload_param={"device": "cpu"})
    assert part.fields["offload"] == "optimizer+params"
    (problem,) = part.problems
    assert problem.may_need_more
    assert problem.key == "zero_optimization.offload_param.device"


def test_parameters_are_offloaded_by_stage_3_only():
    part = zero(2, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    assert part.fields["offload"] == "optimizer"
    (problem,) = problems_of(part, "conflict")
    assert (problem.severity, problem.hint) == (Severity.ERROR, "set stage 3, or offload the optimizer only")


def test_states_on_a_disk_are_not_modelled():
    part = zero(3, offload_optimizer={"device": "nvme", "nvme_path": "/mnt/x"})
    problems = problems_of(part, "unmodelled")
    assert "zero_optimization.offload_optimizer.device" in [each.key for each in problems]
    assert all(each.may_need_more and each.may_need_less for each in problems if each.key.endswith(".device"))


def test_both_dtypes_enabled_are_refused_once():
    part = parsed(zero_optimization={"stage": 2}, bf16={"enabled": True}, fp16={"enabled": True})
    (problem,) = problems_of(part, "conflict")
    assert problem.message == "bf16 and fp16 are both enabled"


BUCKETS = ("zero_reduce_bucket", "zero_prefetch_bucket", "zero_persistence_threshold", "zero_overlap")


def test_buckets_that_a_file_leaves_out_are_deepspeeds_own():
    assert fields(zero(3), *BUCKETS) == {
        "zero_reduce_bucket": 500_000_000,
        "zero_prefetch_bucket": 50_000_000,
        "zero_persistence_threshold": 100_000,
        "zero_overlap": True,
    }


def test_buckets_that_are_auto_follow_the_hidden_size():
    part = zero(3, reduce_bucket_size="auto", stage3_prefetch_bucket_size="auto", overlap_comm=False)
    assert "zero_reduce_bucket" not in part.fields
    assert "zero_prefetch_bucket" not in part.fields
    assert part.fields["zero_overlap"] is False


def test_stage_2_has_one_bucket_and_does_not_overlap_by_itself():
    part = zero(2, reduce_bucket_size=5e8)
    assert part.fields["zero_reduce_bucket"] == 500_000_000
    assert part.fields["zero_overlap"] is False
    assert "zero_prefetch_bucket" not in part.fields


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "perhaps"}}, "zero_optimization.overlap_comm"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": [1]}}, "zero_optimization.reduce_bucket_size"),
    ],
)
def test_what_is_no_value_of_a_key_is_an_error_that_names_it(content, field):
    with pytest.raises(ConfigFileError) as caught:
        parsed(**content)
    assert caught.value.field == field
    assert "ds.json" in str(caught.value)


def test_an_unknown_key_is_told_with_the_nearest():
    part = zero(2, overlap_com=True)
    (problem,) = problems_of(part, "unknown-key")
    assert problem.key == "zero_optimization.overlap_com"
    assert "zero_optimization.overlap_comm" in problem.hint


def test_parameters_of_optimizers_and_loggers_are_not_deepspeeds_vocabulary():
    part = parsed(
        zero_optimization={"stage": 2},
        optimizer={"type": "AdamW", "params": {"lr": "auto", "my_own": 1}},
        scheduler={"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}},
        tensorboard={"enabled": True, "any": 1},
    )
    assert problems_of(part, "unknown-key") == []


def config(**more):
    return RunConfig(**{"model": "m", "sharding": "zero2", **more})


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("offload", ["none", "optimizer", "optimizer+params"])
@pytest.mark.parametrize("batch", [None, (2, 4, 16)])
def test_what_is_written_is_read_back(sharding, offload, batch):
    meant = config(sharding=sharding, offload=offload, micro_batch=2, accumulation=4, zero_reduce_bucket=1234)
    if offload == "optimizer+params" and sharding != "zero3":
        with pytest.raises(CannotExpressError, match="offload"):
            deepspeed.content(meant, batch=batch)
        return
    part = parsed(**deepspeed.content(meant, batch=batch))
    assert {name: value for name, value in part.fields.items() if getattr(meant, name) != value} == {}
    assert part.problems == ()
    assert ("micro_batch" in part.fields) == (batch is not None)


@pytest.mark.parametrize("sharding", ["none", "ddp", "fsdp2", "hsdp"])
def test_other_shardings_are_not_deepspeeds(sharding):
    with pytest.raises(CannotExpressError, match="sharding"):
        deepspeed.content(config(sharding=sharding))


def alone(ranks=4, **content):
    text = json.dumps({"zero_optimization": {"stage": 2}, **content})
    return said_by({"ds.json": text}, ranks=ranks)


@pytest.mark.parametrize(
    ("stated", "micro", "accumulation"),
    [
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}, 2, 8),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 8}, 2, 8),
        ({"train_batch_size": 64}, 16, 1),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 8}, 2, 8),
    ],
)
def test_two_numbers_of_a_batch_decide_the_third(stated, micro, accumulation):
    part = alone(**stated)
    assert fields(part, "micro_batch", "accumulation") == {"micro_batch": micro, "accumulation": accumulation}
    assert not problems_of(part, "conflict")


@pytest.mark.parametrize(
    "stated",
    [
        {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4},
        {"train_batch_size": 63, "train_micro_batch_size_per_gpu": 2},
        {"train_batch_size": 2},
    ],
)
def test_numbers_of_a_batch_that_do_not_come_out_even_are_refused(stated):
    (problem,) = problems_of(alone(**stated), "conflict")
    assert (problem.key, problem.severity) == ("train_batch_size", Severity.ERROR)


def test_the_batch_of_all_processes_is_compared_with_a_trainers_arguments():
    arguments = {"output_dir": "o", "per_device_train_batch_size": 2, "bf16": True, "deepspeed": "ds.json"}
    texts = {
        "args.json": json.dumps(arguments),
        "ds.json": json.dumps({"train_batch_size": 64, "zero_optimization": {"stage": 2}}),
    }
    (problem,) = problems_of(said_by(texts, ranks=4, framework="transformers"), "conflict")
    assert problem.message == "train_batch_size is 64 for DeepSpeed, and the batch of all processes is 8"
    assert not problems_of(said_by(texts, ranks=32, framework="transformers"), "conflict")


def test_a_file_alone_without_a_dtype_trains_in_fp32():
    assert fields(alone(), "precision", "weights_dtype") == {"precision": "none", "weights_dtype": "fp32"}
    assert "weights_dtype" not in alone(bf16={"enabled": True}).fields
    assert "precision" not in alone(train_micro_batch_size_per_gpu="auto").fields
