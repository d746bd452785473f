"""A written torchtune configuration says what was meant, or the error names what it cannot say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from strategies import configs

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import torchtune
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import read_back, rendered
from ftplan.launcher.formats.torchtune_models import builder_for, builders
from ftplan.launcher.formats.torchtune_writing import OPTIMIZERS
from ftplan.profiles.models import hub_id
from ftplan.spec import RunConfig

targets = st.builds(
    Target,
    nodes=st.sampled_from((1, 2)),
    per_node=st.sampled_from((1, 2, 8)),
    dataset=st.sampled_from(("", "data.json", "tatsu-lab/alpaca")),
    learning_rate=st.sampled_from((None, 1e-5, 0.002)),
)
names = st.sampled_from(sorted({each.id for each in builders().values()} | {"Llama-3.1-8B-Instruct", "qwen2.5-0.5b"}))


@given(configs(), targets)
def test_any_configuration_comes_back_or_is_named(config: RunConfig, target: Target) -> None:
    lost = _lost(config, target)
    assert lost is None or (lost and set(lost) <= set(RunConfig.model_fields))


def _lost(config: RunConfig, target: Target) -> tuple[str, ...] | None:
    try:
        rendered(torchtune.FORMAT, config, target)
    except CannotExpressError as error:
        return error.fields
    return None


@st.composite
def expressible(draw: st.DrawFn) -> tuple[RunConfig, Target]:
    """Configurations of all that its files can say."""
    target = draw(targets)
    dtype = draw(st.sampled_from(("bf16", "fp32")))
    method = draw(st.sampled_from(({"method": "full"}, {"method": "lora"}, {"method": "qlora"})))
    sharded = target.ranks > 1 and draw(st.booleans())
    shardings = ["fsdp2", "fsdp2-grad-op", *(["hsdp"] if target.nodes > 1 and target.per_node > 1 else [])]
    model = draw(names)
    builder = builder_for(model)
    assert builder is not None
    fused = ("qkv_proj", "o_proj,qkv_proj") if builder.fused else ("qv", "q_proj,v_proj", "v_proj,o_proj,q_proj")
    parts = ("gate_up_proj,down_proj",) if builder.fused else ("down_proj,up_proj,gate_proj",)
    fields: dict[str, Any] = {
        **torchtune.pins("lora"),
        **method,
        "model": model,
        "weights_dtype": dtype,
        "adapter_dtype": dtype,
        "lora_rank": draw(st.integers(1, 256)),
        "lora_alpha": draw(st.integers(1, 512)),
        "lora_dropout": draw(st.sampled_from((0.0, 0.05))),
        "lora_targets": draw(st.sampled_from(("all-linear", *fused, *parts))),
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
        "loss_path": draw(st.sampled_from(("chunked", "full"))),
        "packing": draw(st.booleans()),
        "gradient_checkpointing": draw(st.booleans()),
        "expandable_segments": draw(st.booleans()),
        "evaluates": draw(st.booleans()),
        "seq_len": draw(st.integers(1, 131072)),
        "micro_batch": draw(st.integers(1, 64)),
        "accumulation": draw(st.integers(1, 64)),
        "sharding": draw(st.sampled_from(shardings)) if sharded else "none",
        "offload": draw(st.sampled_from(("none", "optimizer+params"))) if sharded else "none",
        "sync_each_batch": sharded,
    }
    return RunConfig.model_validate(fields), target


@given(expressible())
def test_what_its_files_can_say_comes_back(drawn: tuple[RunConfig, Target]) -> None:
    config, target = drawn
    files = rendered(torchtune.FORMAT, config, target)
    back = RunConfig.model_validate(read_back(torchtune.FORMAT, target, files))
    assert back.model == hub_id(config.model)
    for field in ("method", "sharding", "offload", "seq_len", "micro_batch", "accumulation", "loss_path"):
        assert getattr(back, field) == getattr(config, field)
