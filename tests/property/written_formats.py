"""Configurations to be written as a framework's files, with the machines they are for."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from strategies import configs

from ftplan.errors import CannotExpressError
from ftplan.estimators.states import OPTIMIZERS
from ftplan.launcher.formats.given import Format, Target
from ftplan.launcher.formats.rendering import _without_effect, read_back, rendered, spelled_targets
from ftplan.profiles.models import hub_id
from ftplan.spec import RunConfig

targets = st.sampled_from((Target(), Target(per_node=2), Target(per_node=8), Target(nodes=2, per_node=4)))


def of_stack(stack: str) -> st.SearchStrategy[RunConfig]:
    """Any configuration with ``stack``'s loop."""
    return configs().map(lambda config: RunConfig(**{**config.model_dump(), "stack": stack}))


@st.composite
def usual(draw: st.DrawFn, stack: str, **chosen: st.SearchStrategy[Any]) -> tuple[RunConfig, Target]:
    """A configuration of which every framework's files say all but what ``chosen`` decides."""
    target = draw(targets)
    one = ("none", "zero1", "zero2", "zero3")
    sharding = draw(st.sampled_from(one if target.ranks == 1 else ("ddp", "fsdp2", "fsdp2-grad-op", *one[1:])))
    offloads = {"none": ("none",), "ddp": ("none",), "zero3": ("none", "optimizer", "optimizer+params")}
    by_fsdp = ("none", "optimizer+params") if sharding.startswith("fsdp") else ("none", "optimizer")
    method = draw(st.sampled_from(("full", "lora", "qlora")))
    fields = {
        "model": "some/model-7b",
        "stack": stack,
        "method": method,
        "quantization": draw(st.sampled_from(("nf4", "fp4"))) if method == "qlora" else "none",
        "double_quantization": draw(st.booleans()) if method == "qlora" else False,
        "lora_rank": draw(st.integers(1, 512)),
        "lora_alpha": draw(st.integers(1, 512)),
        "lora_dropout": draw(st.sampled_from((0.0, 0.05, 0.5))),
        "lora_targets": draw(st.sampled_from(("all-linear", "q_proj,v_proj", "mlp.down_proj"))),
        "optimizer": draw(st.sampled_from([name for name in OPTIMIZERS if "adamw_8bit" not in name])),
        "gradient_checkpointing": draw(st.booleans()),
        "seq_len": draw(st.integers(1, 2**20)),
        "micro_batch": draw(st.integers(1, 64)),
        "accumulation": draw(st.integers(1, 512)),
        "attention": draw(st.sampled_from(("sdpa", "eager", "flash_attention_2"))),
        "kernels": draw(st.sampled_from(("none", "liger"))),
        "sharding": sharding,
        "offload": draw(st.sampled_from(offloads.get(sharding, by_fsdp))),
        "sync_each_batch": draw(st.booleans()),
        "expandable_segments": draw(st.booleans()),
        "evaluates": draw(st.booleans()),
    }
    fields |= {name: draw(strategy) for name, strategy in chosen.items()}
    return RunConfig(**fields), target


def lost(chosen: Format, config: RunConfig, target: Target) -> tuple[str, ...]:
    """The fields that cannot be said; none where the files say the configuration."""
    try:
        comes_back(chosen, config, target)
    except CannotExpressError as error:
        return error.fields or ("nothing is named",)
    return ()


def comes_back(chosen: Format, config: RunConfig, target: Target) -> None:
    """The files say the configuration, but for what has no effect."""
    files = rendered(chosen, config, target)
    back = RunConfig.model_validate(read_back(chosen, target, files))
    ignored = _without_effect(config)
    meant = config.model_copy(update={"model": hub_id(config.model), "lora_targets": spelled_targets(config)})
    assert _fields(back, ignored) == _fields(meant, ignored)


def _fields(config: RunConfig, ignored: frozenset[str]) -> dict[str, Any]:
    """Fields by name; the order of LoRA's targets says nothing."""
    fields = config.model_dump(exclude=set(ignored))
    return {**fields, "lora_targets": frozenset(config.target_names)} if "lora_targets" in fields else fields
