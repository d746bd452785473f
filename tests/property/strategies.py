"""What property tests draw from: models of every kind, inventories, and configurations that are legal on them."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from ftplan.errors import BatchError
from ftplan.estimators.analytic import estimate
from ftplan.estimators.states import OPTIMIZERS
from ftplan.planner.batch import check_global_batch
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.rules import first_rejection
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import load_model
from ftplan.results import Estimate
from ftplan.spec import PlanRequest, RunConfig

MODELS: Final = (
    "gpt2",
    "Qwen2.5-0.5B",
    "Qwen-7B",
    "Llama-3.1-8B",
    "gemma-2-9b",
    "Mixtral-8x7B-v0.1",
    "gpt-oss-20b",
    "DeepSeek-V2-Lite",
    "chatglm3-6b",
    "falcon-7b",
    "Qwen2-VL-72B",
)
"""Grouped and multi heads, tied and untied heads, experts, latent attention, parallel blocks, a vision tower."""

CARDS: Final = ("8GB", "24GB", "T4", "RTX2080Ti", "RTX4090", "A100-80GB", "H100", "H200")

models = st.sampled_from(MODELS)
cards = st.sampled_from(CARDS)
ranks = st.sampled_from((1, 2, 3, 4, 8))


@cache
def cluster(gpus: str) -> Cluster:
    return resolve_inventory(parse_inventory(gpus))


@cache
def model_of(name: str) -> ModelProfile:
    return load_model(name)


inventories = st.one_of(
    st.builds("{}x{}".format, ranks, cards),
    st.builds("{}x{}x{}".format, st.sampled_from((2, 4)), st.sampled_from((2, 8)), cards),
    st.builds("{}xcpu:{}GB".format, st.sampled_from((1, 2)), st.sampled_from((4, 64))),
    st.just("1xA100-80GB+1xRTX3090"),
)

_METHODS = st.sampled_from(
    [
        {"method": "full"},
        {"method": "lora"},
        {"method": "qlora"},
        {"method": "qlora", "quantization": "fp4", "double_quantization": False},
        {"method": "qlora", "prepare_kbit": True},
    ]
)
_LOSSES = st.sampled_from(
    [
        {"loss_path": "full"},
        {"loss_path": "chunked"},
        {"kernels": "liger"},
        {"stack": "trl"},
        {"stack": "llamafactory"},
        {"stack": "torchtune"},
        {"stack": "cookbook"},
    ]
)
_DTYPES = st.sampled_from(
    [
        {"weights_dtype": weights, "precision": precision}
        for weights in ("bf16", "fp16", "fp32")
        for precision in ("none", "bf16", "fp16")
    ]
)
_SHARDINGS = ("none", "ddp", "fsdp2", "fsdp2-grad-op", "hsdp", "zero1", "zero2", "zero3")
_ZERO = st.fixed_dictionaries(
    {},
    optional={
        "zero_reduce_bucket": st.sampled_from((10**6, 5 * 10**8)),
        "zero_prefetch_bucket": st.sampled_from((0, 5 * 10**7)),
        "zero_persistence_threshold": st.sampled_from((0, 10**6)),
        "zero_overlap": st.just(False),
    },
)
_OFFLOADS = ("none", "optimizer", "optimizer+params")
_FLAGS = ("gradient_checkpointing", "padding", "packing", "sync_each_batch", "expandable_segments")


@st.composite
def configs(draw: st.DrawFn, model: st.SearchStrategy[str] = models) -> RunConfig:
    """Any configuration that the type allows, legal on some cards or on none."""
    fields: dict[str, Any] = {
        "model": draw(model),
        **draw(_METHODS),
        **draw(_LOSSES),
        **draw(_DTYPES),
        "lora_rank": draw(st.sampled_from((1, 8, 16, 64))),
        "lora_targets": draw(st.sampled_from(("all-linear", "qv"))),
        "lora_dropout": draw(st.sampled_from((0.0, 0.05))),
        "adapter_dtype": draw(st.sampled_from(("fp32", "bf16", None))),
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
        "attention": draw(st.sampled_from(("sdpa", "eager", "flash_attention_2"))),
        "sharding": draw(st.sampled_from(_SHARDINGS)),
        "offload": draw(st.sampled_from(_OFFLOADS)),
        "seq_len": draw(st.integers(1, 1024)),
        "micro_batch": draw(st.integers(1, 16)),
        "accumulation": draw(st.integers(1, 8)),
        **{flag: draw(st.booleans()) for flag in _FLAGS},
    }
    if fields["sharding"].startswith("zero"):
        fields |= draw(_ZERO)
    return RunConfig(**fields)


@st.composite
def legal(draw: st.DrawFn) -> tuple[RunConfig, str]:
    """A configuration with an inventory on which no rule but memory rejects it."""
    gpus = draw(inventories)
    on_cards = configs().filter(lambda config: _is_legal(config, gpus))
    return draw(on_cards), gpus


def _is_legal(config: RunConfig, gpus: str) -> bool:
    return first_rejection(config, model_of(config.model), cluster(gpus)) is None


def estimated(config: RunConfig, gpus: str) -> Estimate:
    return estimate(config, model_of(config.model), cluster(gpus))


pins = st.fixed_dictionaries(
    {},
    optional={
        "lora_rank": st.sampled_from((4, 16, 64)),
        "lora_targets": st.sampled_from(("all-linear", "qv")),
        "lora_dropout": st.just(0.05),
        "gradient_checkpointing": st.booleans(),
        "sharding": st.sampled_from(("ddp", "fsdp2", "zero2", "zero3")),
        "offload": st.sampled_from(_OFFLOADS),
        "micro_batch": st.sampled_from((1, 2)),
        "packing": st.booleans(),
        "optimizer": st.sampled_from(("adamw_torch", "adamw_bnb_8bit", "sgd")),
        "expandable_segments": st.booleans(),
        "kernels": st.sampled_from(("none", "liger")),
    },
)


@st.composite
def requests(draw: st.DrawFn, **fixed: st.SearchStrategy[Any]) -> PlanRequest:
    """A request that can be planned, whether or not something fits: its batch splits over the ranks."""
    inventory = parse_inventory(draw(fixed.get("gpus", inventories)))
    samples = draw(st.sampled_from((2, 4, 12, 16)))
    return PlanRequest(
        model=draw(models),
        inventory=inventory,
        method=draw(st.sampled_from(("auto", "full", "lora", "qlora"))),
        global_batch=samples * inventory.world_size,
        seq_len=draw(st.sampled_from((128, 1000, 2048))),
        objective=draw(st.sampled_from(("throughput", "memory"))),
        margin=draw(st.sampled_from((0.0, 0.03, 0.1))),
        pins=draw(fixed.get("pins", pins)),
    )


def splits_evenly(batch: int, world_size: int) -> bool:
    try:
        check_global_batch(batch, world_size)
    except BatchError:
        return False
    return True
