import json

import pytest
from written import about, fields, problems_of, said_by

from ftplan.errors import ConfigFileError

FSDP = "per_device_train_batch_size: 1\noutput_dir: o\nbf16: true\nfsdp: true\n"
LLAMAFACTORY = f"model_name_or_path: gpt2\nstage: sft\ndo_train: true\nfinetuning_type: full\ndataset: d\n{FSDP}"


def said(text, *words, framework="transformers", **files):
    texts = {"run.yaml": text, **{f"{name}.json": json.dumps(each, indent=1) for name, each in files.items()}}
    return said_by(texts, "run.yaml", *words, ranks=2, framework=framework)


@pytest.mark.parametrize("framework", ["transformers", "llamafactory", "trl"])
@pytest.mark.parametrize("stated", ["fsdp_config:\n  version: 2\n", ""])
def test_a_dotted_override_counts_inside_of_its_mapping(framework, stated):
    text = {"llamafactory": LLAMAFACTORY, "trl": f"model_name_or_path: gpt2\n{FSDP}"}.get(framework, FSDP)
    assert said(text + stated, framework=framework).fields["offload"] == "none"
    part = said(text + stated, "fsdp_config.cpu_offload=true", framework=framework)
    assert part.fields["offload"] == "optimizer+params"
    part = said(text + stated, "fsdp_config.reshard_after_forward=false", framework=framework)
    assert part.fields["sharding"] == "fsdp2-grad-op"
    assert not problems_of(part, "unknown-key")


def test_a_dotted_override_of_accelerates_and_deepspeeds_mappings():
    key = "accelerator_config.gradient_accumulation_kwargs.sync_each_batch"
    assert said(FSDP, f"{key}=true").fields["sync_each_batch"]
    assert not said(FSDP, f"{key}=false").fields["sync_each_batch"]
    text = "output_dir: o\nbf16: true\ndeepspeed:\n  zero_optimization:\n    stage: 2\n"
    part = said(text, "deepspeed.zero_optimization.stage=3")
    assert part.fields["sharding"] == "zero3"
    assert not problems_of(part, "unknown-key")


def test_a_file_of_fsdp_s_settings_is_audited_where_it_stands():
    part = said(f"{FSDP}fsdp_config: fsdp.json\n", fsdp={"cpu_offload": True, "limits": 1, "xla": True})
    assert fields(part, "sharding", "offload") == {"sharding": "fsdp2", "offload": "optimizer+params"}
    (unknown,) = problems_of(part, "unknown-key")
    assert (unknown.key, str(unknown.place)) == ("fsdp_config.limits", "fsdp.json:3")
    (costly,) = [each for each in problems_of(part, "unmodelled") if each.key == "fsdp_config.xla"]
    assert str(costly.place) == "fsdp.json:4"
    assert str(part.origins["offload"].place) == "fsdp.json:2"


def test_a_dotted_override_goes_over_a_file():
    part = said(f"{FSDP}fsdp_config: fsdp.json\n", "fsdp_config.cpu_offload=false", fsdp={"cpu_offload": True})
    assert part.fields["offload"] == "none"


def test_a_file_of_accelerate_s_settings_is_opened():
    inside = {"split_batches": True, "gradient_accumulation_kwargs": {"sync_each_batch": True}}
    part = said(f"{FSDP}accelerator_config: accel.json\n", accel=inside)
    assert part.fields["sync_each_batch"]
    assert about(part, "accelerator_config.split_batches")
    with pytest.raises(ConfigFileError, match=r"accel\.json"):
        said(f"{FSDP}accelerator_config: accel.json\n")


def test_mappings_as_json_on_a_command_line():
    part = said(FSDP, 'fsdp_config={"cpu_offload": true}')
    assert part.fields["offload"] == "optimizer+params"
    part = said("output_dir: o\n", 'deepspeed={"zero_optimization": {"stage": 2}}')
    assert part.fields["sharding"] == "zero2"
    with pytest.raises(ConfigFileError, match="no JSON"):
        said(FSDP, "fsdp_config={cpu_offload")


@pytest.mark.parametrize("word", ["no_shard", "hybrid_shard", "hybrid_shard_zero2"])
def test_strategies_of_fsdp1_alone(word):
    text = FSDP.replace("fsdp: true", f"fsdp: {word} auto_wrap")
    (problem,) = problems_of(said(text), "conflict")
    assert problem.message == f"fsdp {word} is only available with FSDP1"
    assert not problems_of(said(text + "fsdp_config:\n  version: 1\n"), "conflict")
    assert not problems_of(said(text.replace(word, "shard_grad_op")), "conflict")
