from pathlib import Path

import pytest
import yaml
from written import fields, problems_of, said_by

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats import accelerate
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.fsdp import FSDP1_WITHIN
from ftplan.launcher.formats.partial import Shape
from ftplan.spec import RunConfig


def parsed(text, **others):
    files = Files({Path(name.replace("_", ".")): content for name, content in others.items()})
    return accelerate.parse(parse_document(text, Path("acc.yaml")), files)


def fsdp(**keys):
    lines = "".join(f"  fsdp_{key}: {value}\n" for key, value in keys.items())
    return parsed(f"distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n{lines}")


def test_a_plain_file_of_several_processes():
    part = parsed("distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_machines: 2\nnum_processes: 16\n")
    assert fields(part, "sharding", "precision") == {"sharding": "ddp", "precision": "bf16"}
    assert part.origins["precision"].place.line == 2
    assert part.shape == Shape(2, 8, 16)


def test_one_process():
    part = parsed("distributed_type: 'NO'\nmixed_precision: 'no'\nnum_processes: 1\n")
    assert part.fields == {"sharding": "none"}
    assert part.shape == Shape(1, 1, 1)


def test_a_file_without_numbers_says_nothing_of_processes():
    assert parsed("distributed_type: FSDP\n").shape == Shape()


@pytest.mark.parametrize(
    ("keys", "sharding"),
    [
        ({"version": 2}, "fsdp2"),
        ({"version": 2, "reshard_after_forward": "true"}, "fsdp2"),
        ({"version": 2, "reshard_after_forward": "false"}, "fsdp2-grad-op"),
        ({"version": 1, "sharding_strategy": "FULL_SHARD"}, "fsdp2"),
        ({"version": 1, "sharding_strategy": "SHARD_GRAD_OP"}, "fsdp2-grad-op"),
        ({"version": 1, "sharding_strategy": "HYBRID_SHARD"}, "hsdp"),
        ({"version": 1, "sharding_strategy": "NO_SHARD"}, "ddp"),
        ({"version": 1, "sharding_strategy": 1}, "fsdp2"),
        ({"version": 1, "sharding_strategy": 2}, "fsdp2-grad-op"),
        ({"version": 1, "sharding_strategy": 3}, "ddp"),
        ({"version": 1, "sharding_strategy": 4}, "hsdp"),
        ({"version": 1, "sharding_strategy": 5}, "hsdp"),
        ({"version": 1, "reshard_after_forward": "SHARD_GRAD_OP"}, "fsdp2-grad-op"),
    ],
)
def test_what_fsdp_shards_by_its_words_in_either_version(keys, sharding):
    assert fsdp(**keys).fields["sharding"] == sharding


def test_the_first_version_is_an_assumption_with_a_bound():
    (problem,) = problems_of(fsdp(sharding_strategy="FULL_SHARD"), "assumption")
    assert problem.within == FSDP1_WITHIN
    assert problem.may_need_more
    assert problem.may_need_less


@pytest.mark.parametrize("keys", [{"version": 2}, {"version": 1, "sharding_strategy": "NO_SHARD"}])
def test_what_needs_no_assumption_makes_none(keys):
    assert problems_of(fsdp(**keys), "assumption") == []


def test_offload_and_checkpointing_of_fsdp():
    part = fsdp(version=2, offload_params="true", activation_checkpointing="true")
    assert fields(part, "offload", "gradient_checkpointing") == {
        "offload": "optimizer+params",
        "gradient_checkpointing": True,
    }
    assert part.origins["offload"].key == "fsdp_config.fsdp_offload_params"


def test_an_unknown_strategy_is_an_error_with_the_valid_ones():
    with pytest.raises(ConfigFileError, match="no sharding strategy") as caught:
        fsdp(version=1, sharding_strategy="SOME_SHARD")
    assert caught.value.line == 5
    assert "HYBRID_SHARD" in caught.value.hint


def test_deepspeed_inside_of_accelerate_s_file_has_deepspeed_s_own_buckets():
    part = parsed(
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 3\n  offload_optimizer_device: cpu\n"
        "  offload_param_device: none\n  gradient_accumulation_steps: 4\n"
    )
    expected = {"sharding": "zero3", "offload": "optimizer", "accumulation": 4, "zero_reduce_bucket": 500_000_000}
    assert fields(part, *expected) == expected
    assert part.origins["accumulation"].key == "deepspeed_config.gradient_accumulation_steps"


def test_a_deepspeed_file_that_it_names_is_read():
    text = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: ds.json\n"
    part = parsed(text, ds_json='{"zero_optimization": {"stage": 1}}')
    assert part.fields["sharding"] == "zero1"
    assert part.origins["sharding"].place.file == "ds.json"


def test_what_is_not_modelled_says_what_is():
    (problem,) = problems_of(parsed("distributed_type: MEGATRON_LM\n"), "unmodelled")
    assert problem.key == "distributed_type"
    assert "FSDP" in problem.hint


@pytest.mark.parametrize(
    ("text", "field"),
    [("num_processes: many\n", "num_processes"), ("num_machines: -1\n", "num_machines")],
)
def test_a_number_that_is_none_is_an_error(text, field):
    with pytest.raises(ConfigFileError) as caught:
        parsed("distributed_type: MULTI_GPU\n" + text)
    assert (caught.value.field, caught.value.line) == (field, 2)


TRAIN = "model_name_or_path: m\nstage: sft\ndo_train: true\noutput_dir: o\nbf16: true\n"
CONFIG = "distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 1\n"


def test_options_of_accelerate_launch_stand_over_its_file():
    command = "accelerate launch --config_file acc.yaml --num_processes 2 -m llamafactory.launcher train.yaml"
    texts = {"run.sh": command, "acc.yaml": CONFIG, "train.yaml": TRAIN}
    part = said_by(texts, ranks=2)
    assert part.shape.total == 2
    assert part.fields["sharding"] == "ddp"


def test_fsdp_by_options_alone():
    command = "accelerate launch --use_fsdp --fsdp_version 2 --fsdp_offload_params true --num_processes 8 "
    part = said_by({"run.sh": f"{command} -m llamafactory.launcher train.yaml", "train.yaml": TRAIN}, ranks=8)
    assert fields(part, "sharding", "offload") == {"sharding": "fsdp2", "offload": "optimizer+params"}


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "fsdp2-grad-op", "zero2", "none"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_what_is_written_is_read_back(sharding, nodes):
    meant = RunConfig(model="m", sharding=sharding)
    per_node = 1 if sharding == "none" else 8
    content = accelerate.content(meant, nodes=nodes, per_node=per_node, deepspeed_file="ds.json")
    part = parsed(yaml.safe_dump(content), ds_json='{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}')
    assert part.fields["sharding"] == ("ddp" if nodes * per_node > 1 and sharding == "none" else sharding)
    assert part.fields["precision"] == "bf16"
    assert part.shape == Shape(nodes, per_node, nodes * per_node)
    assert problems_of(part, "conflict", "unknown-key", "assumption") == []


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"sharding": "hsdp"}, "sharding"),
        ({"sharding": "fsdp2", "offload": "optimizer"}, "offload"),
        ({"sharding": "ddp", "offload": "optimizer"}, "offload"),
    ],
)
def test_what_its_file_has_no_words_for_is_an_error_that_names_the_field(more, field):
    with pytest.raises(CannotExpressError, match=field):
        accelerate.content(RunConfig(model="m", **more), nodes=1, per_node=8)
