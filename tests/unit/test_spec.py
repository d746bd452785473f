import json

import pytest
import yaml
from pydantic import ValidationError

from ftplan.spec import OF_THE_MODEL, DeviceGroup, Inventory, PlanRequest, RunConfig


def config(**fields):
    return RunConfig(**{"model": "Qwen-7B", **fields})


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({}, "quantization", "none"),
        ({}, "double_quantization", False),
        ({"method": "full"}, "quantization", "none"),
        ({"method": "qlora"}, "quantization", "nf4"),
        ({"method": "qlora"}, "double_quantization", True),
        ({"method": "qlora", "quantization": "fp4"}, "double_quantization", True),
        ({"method": "qlora", "double_quantization": False}, "double_quantization", False),
        ({}, "lora_alpha", 32),
        ({"lora_rank": 8}, "lora_alpha", 16),
        ({"lora_rank": 64, "lora_alpha": 16}, "lora_alpha", 16),
        ({}, "adapter_dtype", "fp32"),
        ({"method": "qlora"}, "adapter_dtype", "fp32"),
        ({"method": "lora", "stack": "trl"}, "adapter_dtype", "fp32"),
        ({"method": "qlora", "stack": "trl"}, "adapter_dtype", "bf16"),
        ({"method": "qlora", "stack": "trl", "adapter_dtype": "fp32"}, "adapter_dtype", "fp32"),
        ({"method": "llama-adapter"}, "adapter_dtype", "bf16"),
        ({"method": "llama-adapter", "weights_dtype": "fp32"}, "adapter_dtype", "fp32"),
        ({"method": "llama-adapter", "quantization": "nf4"}, "adapter_dtype", "fp32"),
        ({"method": "llama-adapter", "quantization": "nf4", "stack": "trl"}, "adapter_dtype", "bf16"),
        ({"method": "llama-adapter"}, "quantization", "none"),
        ({}, "loss_path", "full"),
        ({"stack": "llamafactory"}, "loss_path", "full"),
        ({"stack": "trl"}, "loss_path", "chunked"),
        ({"stack": "trl", "loss_path": "full"}, "loss_path", "full"),
        ({"kernels": "liger"}, "loss_path", "liger"),
        ({"stack": "trl", "kernels": "liger"}, "loss_path", "liger"),
    ],
)
def test_a_field_left_out_follows_from_the_others(given, field, value):
    assert getattr(config(**given), field) == value


@pytest.mark.parametrize("field", ["quantization", "lora_alpha", "adapter_dtype", "loss_path", "double_quantization"])
def test_none_asks_for_the_derived_default(field):
    assert getattr(config(method="qlora", **{field: None}), field) == getattr(config(method="qlora"), field)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "qlora", "quantization": "none"},
        {"method": "lora", "quantization": "nf4"},
        {"method": "full", "quantization": "fp4"},
        {"kernels": "liger", "loss_path": "full"},
        {"kernels": "liger", "loss_path": "chunked"},
        {"kernels": "none", "loss_path": "liger"},
    ],
)
def test_contradictions_raise(given):
    with pytest.raises(ValidationError):
        config(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "dora"},
        {"weights_dtype": "fp8"},
        {"lora_rank": 0},
        {"lora_rank": -1},
        {"lora_rank": 16.0},
        {"lora_rank": "16"},
        {"lora_rank": True},
        {"lora_dropout": 1.0},
        {"lora_dropout": -0.1},
        {"lora_dropout": float("nan")},
        {"lora_targets": "q_proj,,v_proj"},
        {"lora_targets": ""},
        {"seq_len": 0},
        {"micro_batch": 0},
        {"accumulation": 1.5},
        {"gradient_checkpointing": 1},
        {"gradient_checkpointing": "yes"},
        {"zero_reduce_bucket": 0},
        {"zero_reduce_bucket": 5e8},
        {"zero_reduce_bucket": "auto"},
        {"zero_prefetch_bucket": -1},
        {"zero_persistence_threshold": -1},
        {"zero_overlap": 1},
        {"zero_overlap": None},
        {"model": ""},
        {"model": 7},
        {"flash": True},
    ],
)
def test_types_are_strict_and_values_bounded(given):
    with pytest.raises(ValidationError):
        config(**given)


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        config().micro_batch = 2


def test_names_of_lora_targets_lose_their_blanks():
    assert config(lora_targets=" q_proj , v_proj ").target_names == ("q_proj", "v_proj")


@pytest.mark.parametrize(("method", "trains_adapters"), [("full", False), ("lora", True), ("qlora", True)])
def test_only_full_trains_the_weights_themselves(method, trains_adapters):
    assert config(method=method).trains_adapters is trains_adapters


def test_tokens_of_a_micro_batch():
    assert config(micro_batch=3, seq_len=100).tokens_per_micro_batch == 300


CONFIGS = [
    config(),
    config(method="qlora", stack="trl", prepare_kbit=True),
    config(method="full", sharding="zero3", offload="optimizer+params", accumulation=4),
    config(kernels="liger", lora_targets="q_proj,v_proj", lora_dropout=0.05),
    config(
        sharding="zero3",
        zero_reduce_bucket=5 * 10**8,
        zero_prefetch_bucket=0,
        zero_persistence_threshold=10**12,
        zero_overlap=False,
    ),
]


@pytest.mark.parametrize("original", CONFIGS)
def test_a_config_survives_json(original):
    assert RunConfig.model_validate_json(original.model_dump_json()) == original


@pytest.mark.parametrize("original", CONFIGS)
def test_a_config_survives_yaml(original):
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(original.model_dump(mode="json")))) == original


def test_nothing_in_a_dumped_config_is_left_open_but_what_the_model_decides():
    dumped = config(method="qlora").model_dump()
    assert {field for field, value in dumped.items() if value is None} == OF_THE_MODEL


INVENTORY = Inventory(text="2x8xH100", groups=(DeviceGroup(device="H100-SXM", count=8),), nodes=2)


def test_devices_of_an_inventory():
    assert INVENTORY.devices_per_node == 8
    assert INVENTORY.world_size == 16


def test_groups_of_a_node_add_up():
    groups = (DeviceGroup(device="RTX4090", count=3), DeviceGroup(device="A100-40GB-PCIe", count=1))
    assert Inventory(text="mixed", groups=groups).devices_per_node == 4


@pytest.mark.parametrize("given", [{"groups": ()}, {"groups": INVENTORY.groups, "nodes": 0}])
def test_an_inventory_holds_devices(given):
    with pytest.raises(ValidationError):
        Inventory(text="nothing", **given)


def test_a_request_has_documented_defaults():
    request = PlanRequest(model="Qwen-7B", inventory=INVENTORY)
    assert (request.method, request.objective) == ("auto", "throughput")
    assert (request.global_batch, request.seq_len, request.margin) == (32, 2048, 0.03)
    assert request.pins == {}


def test_pins_name_fields_of_a_config():
    with pytest.raises(ValidationError, match="no field of RunConfig: micro_batches"):
        PlanRequest(model="Qwen-7B", inventory=INVENTORY, pins={"micro_batches": 2})


def test_a_request_survives_json():
    request = PlanRequest(model="Qwen-7B", inventory=INVENTORY, method="lora", pins={"lora_rank": 8, "packing": True})
    document = json.loads(request.model_dump_json())
    assert PlanRequest.model_validate(document) == request
