import pytest
from plans import cluster, estimated

from ftplan.planner.inventory import parse_inventory
from ftplan.planner.rules import RULES, first_rejection, format_rejection, memory_rejection
from ftplan.profiles.models import load_model
from ftplan.spec import PlanRequest, RunConfig

FULL = {"method": "full"}
FP16 = {"precision": "fp16", "weights_dtype": "fp16"}
FP32 = {"precision": "none", "weights_dtype": "fp32"}
FLASH = {"attention": "flash_attention_2"}

PROMPTS = {"method": "llama-adapter", "adapter_dtype": "fp32"}
LLAMA = "Llama-3.1-8B"

REJECTED = [
    ("adapter-sharded", "2x80GB", LLAMA, {**PROMPTS, "sharding": "fsdp2"}, "use ddp, zero1 or zero2"),
    ("adapter-sharded", "2x80GB", LLAMA, {**PROMPTS, "sharding": "fsdp2-grad-op"}, "use ddp, zero1 or zero2"),
    ("adapter-sharded", "2x8x80GB", LLAMA, {**PROMPTS, "sharding": "hsdp"}, "use ddp, zero1 or zero2"),
    ("adapter-sharded", "2x80GB", LLAMA, {**PROMPTS, "sharding": "zero3"}, "use zero1 or zero2"),
    ("adapter-architecture", "1x80GB", "Qwen-7B", PROMPTS, "use --method lora"),
    ("adapter-dtype", "1x80GB", LLAMA, {**PROMPTS, "precision": "none"}, "--adapter-dtype bf16"),
    (
        "adapter-dtype",
        "1x80GB",
        LLAMA,
        {**PROMPTS, "precision": "none", "quantization": "nf4", "prepare_kbit": True, "adapter_dtype": "bf16"},
        "--adapter-dtype fp32",
    ),
    ("cpu-sharding", "2xcpu:8GB", "Qwen-7B", {"sharding": "fsdp2", **FP32}, "use ddp"),
    ("cpu-sharding", "2xcpu:8GB", "Qwen-7B", {"sharding": "zero2", **FP32}, "use ddp"),
    ("hsdp-needs-nodes", "8x24GB", "Qwen-7B", {"sharding": "hsdp"}, "use fsdp2"),
    ("hsdp-needs-nodes", "8x1x24GB", "Qwen-7B", {"sharding": "hsdp"}, "use fsdp2"),
    ("fsdp-one-card", "1x24GB", "Qwen-7B", {"sharding": "fsdp2", "offload": "optimizer+params"}, "zero2"),
    ("offload", "2x24GB", "Qwen-7B", {"sharding": "ddp", "offload": "optimizer"}, "zero2"),
    ("offload", "1x24GB", "Qwen-7B", {"sharding": "none", "offload": "optimizer+params"}, "zero3"),
    ("offload", "2x24GB", "Qwen-7B", {"sharding": "fsdp2", "offload": "optimizer"}, "optimizer+params"),
    ("offload", "2x24GB", "Qwen-7B", {"sharding": "zero2", "offload": "optimizer+params"}, "use zero3"),
    ("needs-bf16", "1xT4", "Qwen-7B", {"precision": "bf16"}, "use fp16"),
    ("needs-bf16", "1xRTX2080Ti", "Qwen-7B", {"precision": "none", "weights_dtype": "bf16"}, "use fp16"),
    ("needs-bf16", "1xRTX4090+1xT4", "Qwen-7B", {"sharding": "ddp"}, "use fp16"),
    ("fp16-adapters", "1xT4", "Qwen-7B", {**FP16, "adapter_dtype": "bf16"}, "fp32 adapters"),
    ("fp16-adapters", "1xT4", "Qwen-7B", {**FP16, "adapter_dtype": "fp16"}, "fp32 adapters"),
    ("fp16-weights", "1xT4", "Qwen-7B", {**FULL, **FP16}, "fp32 weights"),
    ("attention-kernel", "1xT4", "Qwen-7B", {**FP16, **FLASH}, "use sdpa"),
    ("attention-kernel", "1xH100", "gpt-oss-20b", {"attention": "sdpa"}, "use "),
    (
        "optimizer-shards",
        "2x24GB",
        "Qwen-7B",
        {"sharding": "fsdp2", "optimizer": "adamw_bnb_8bit"},
        "adamw_torch_fused",
    ),
    ("optimizer-shards", "2x24GB", "Qwen-7B", {"sharding": "fsdp2", "optimizer": "paged_adamw_32bit"}, "adamw"),
    (
        "optimizer-shards",
        "2x24GB",
        "Qwen-7B",
        {"sharding": "zero2", "offload": "optimizer", "optimizer": "paged_adamw_8bit"},
        "adamw",
    ),
    ("quantization", "1xcpu:8GB", "Qwen-7B", {"method": "qlora", **FP32}, "use lora"),
    ("quantization", "2x24GB", "Qwen-7B", {"method": "qlora", "sharding": "zero3"}, "use fsdp2"),
    ("optimizer-shards", "2x24GB", "Qwen-7B", {"sharding": "fsdp2", "optimizer": "adafactor"}, "zero2"),
    ("liger-architecture", "1x24GB", "Qwen-7B", {"kernels": "liger"}, "kernels none"),
    ("liger-card", "1xP100-16GB", "Qwen2.5-7B", {"kernels": "liger", **FP16}, "kernels none"),
    ("expert-dropout", "1xH100", "Mixtral-8x7B-v0.1", {"lora_dropout": 0.1}, "dropout to 0"),
    ("positions", "1x24GB", "gpt2", {"seq_len": 1025}, "at most 1024"),
]

PASSED = [
    ("2xcpu:8GB", "Qwen-7B", {"sharding": "ddp", **FP32}),
    ("2x8x24GB", "Qwen-7B", {"sharding": "hsdp"}),
    ("2x24GB", "Qwen-7B", {"sharding": "zero2", "offload": "optimizer"}),
    ("2x24GB", "Qwen-7B", {"sharding": "zero3", "offload": "optimizer+params"}),
    ("2x24GB", "Qwen-7B", {"sharding": "fsdp2", "offload": "optimizer+params"}),
    ("1xRTX3090", "Qwen-7B", {"precision": "bf16"}),
    ("1xT4", "Qwen-7B", FP16),
    ("1xT4", "Qwen-7B", {**FULL, "precision": "fp16", "weights_dtype": "fp32"}),
    ("2xT4", "Qwen-7B", {**FULL, **FP16, "sharding": "zero3"}),
    ("1xRTX3090", "Qwen-7B", FLASH),
    ("1xH100", "gpt-oss-20b", {"attention": "eager", "lora_targets": "q_proj"}),
    ("2x24GB", "Qwen-7B", {"sharding": "ddp", "optimizer": "adamw_bnb_8bit"}),
    ("2x24GB", "Qwen-7B", {"sharding": "fsdp2", "optimizer": "adamw_torch_fused"}),
    ("2x24GB", "Qwen-7B", {"method": "qlora", "sharding": "fsdp2"}),
    ("1xH100", "Mixtral-8x7B-v0.1", {"lora_dropout": 0.1, "lora_targets": "q_proj,v_proj"}),
    ("1xH100", "Mixtral-8x7B-v0.1", {"lora_dropout": 0.0}),
    ("1xH100", "Qwen-7B", {"lora_dropout": 0.1}),
    ("1x24GB", "Qwen2.5-7B", {"kernels": "liger"}),
    ("1xT4", "Qwen2.5-7B", {"kernels": "liger", **FP16}),
    ("2x24GB", "Qwen-7B", {"sharding": "zero3", "optimizer": "adafactor"}),
    ("1x24GB", "gpt2", {"seq_len": 1024}),
    ("1x24GB", "Qwen-7B", {"seq_len": 65_536}),
]


def rejection(gpus, model, fields):
    return first_rejection(RunConfig(model=model, **fields), load_model(model), cluster(gpus))


@pytest.mark.parametrize(("rule", "gpus", "model", "fields", "hint"), REJECTED)
def test_a_rule_rejects_by_its_name_with_a_reason_a_way_out_and_a_source(rule, gpus, model, fields, hint):
    found = rejection(gpus, model, fields)
    assert found is not None
    assert found.rule == rule
    assert found.reason
    assert hint in found.hint
    assert found.source
    assert found.lacking_bytes is None


@pytest.mark.parametrize(("gpus", "model", "fields"), PASSED)
def test_what_is_legal_passes_every_rule(gpus, model, fields):
    assert rejection(gpus, model, fields) is None


def test_every_rule_has_a_case_that_it_rejects():
    rejecting = set()
    for _, gpus, model, fields, _ in REJECTED:
        config = RunConfig(model=model, **fields)
        rejecting |= {rule for rule in RULES if rule(config, load_model(model), cluster(gpus)) is not None}
    assert rejecting == set(RULES)


def test_a_way_out_that_is_hinted_at_is_legal():
    assert rejection("2x24GB", "Qwen-7B", {"sharding": "fsdp2", "offload": "optimizer+params"}) is None
    assert rejection("1xT4", "Qwen-7B", {**FP16, "attention": "sdpa"}) is None


def test_memory_that_suffices_rejects_nothing():
    fitting = estimated("1x24GB").estimate
    assert fitting is not None
    assert fitting.fits
    assert memory_rejection(fitting, 0.0) is None


def test_too_little_memory_counts_what_is_missing():
    lacking = estimated("1x8GB").estimate
    assert lacking is not None
    found = memory_rejection(lacking, 0.1)
    assert found is not None
    assert found.rule == "memory"
    assert str(lacking.peak_phase) in found.reason
    assert found.needed_bytes == lacking.needed_bytes
    assert found.available_bytes == round(0.9 * lacking.capacity_bytes)
    assert found.lacking_bytes == found.needed_bytes - found.available_bytes > 0


def test_too_little_host_memory_has_a_rule_of_its_own():
    lacking = estimated(
        "1xH200", model="Qwen2.5-72B", method="full", sharding="zero3", offload="optimizer+params"
    ).estimate
    assert lacking is not None
    found = memory_rejection(lacking, 0.0)
    assert found is not None
    assert found.rule == "host-memory"
    assert "RAM" in found.hint
    assert (found.needed_bytes, found.available_bytes) == (lacking.host.peak_bytes, lacking.host.capacity_bytes)


@pytest.mark.parametrize(("sharding", "rejected"), [("hsdp", True), ("fsdp2", False)])
def test_what_a_tool_s_files_cannot_say_is_rejected_by_its_name(sharding, rejected):
    asked = PlanRequest(
        model="m",
        inventory=parse_inventory("2x2x24GB"),
        written_for="LLaMA-Factory",
        not_written={"sharding": ("hsdp",)},
    )
    found = format_rejection(RunConfig(model="m", sharding=sharding), asked)
    assert (found is not None) == rejected
    if found is not None:
        assert found.rule == "not-written"
        assert found.reason == "LLaMA-Factory's files cannot say sharding hsdp"
        assert "--format" in found.hint


def test_our_own_files_can_say_everything():
    asked = PlanRequest(model="m", inventory=parse_inventory("1x24GB"))
    assert format_rejection(RunConfig(model="m", sharding="hsdp"), asked) is None


@pytest.mark.parametrize(("stack", "rejected"), [("trainer", True), ("trl", True), ("llamafactory", False)])
def test_fp16_weights_train_where_the_stack_casts_them(stack, rejected):
    fields = {"method": "full", "weights_dtype": "fp16", "precision": "fp16", "stack": stack}
    assert (rejection("1xT4", "Qwen2.5-0.5B", fields) is not None) == rejected
