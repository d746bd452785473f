"""A written llama-cookbook command says what was meant, or the error names what it cannot say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, models

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import cookbook
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import read_back, rendered
from ftplan.profiles.models import hub_id
from ftplan.spec import RunConfig

targets = st.builds(
    Target,
    nodes=st.sampled_from((1, 2)),
    per_node=st.sampled_from((1, 2, 8)),
    dataset=st.sampled_from(("", "data.json", "samsum_dataset")),
    output_dir=st.sampled_from(("output", "a folder/with 'marks'")),
    learning_rate=st.sampled_from((None, 1e-5, 0.002)),
)


@given(configs(), targets)
def test_any_configuration_comes_back_or_is_named(config: RunConfig, target: Target) -> None:
    lost = _lost(config, target)
    assert lost is None or (lost and set(lost) <= set(RunConfig.model_fields))


def _lost(config: RunConfig, target: Target) -> tuple[str, ...] | None:
    try:
        rendered(cookbook.FORMAT, config, target)
    except CannotExpressError as error:
        return error.fields
    return None


_FULL = ({"method": "full", "precision": "none", "weights_dtype": "bf16"},)
_ADAPTERS = tuple(
    {"method": method, "precision": precision, "weights_dtype": dtype, "quantization": kind}
    for method, kind in (("lora", "none"), ("qlora", "nf4"), ("qlora", "fp4"))
    for dtype, precision in (("bf16", "none"), ("bf16", "bf16"), ("fp16", "fp16"))
)


@st.composite
def expressible(draw: st.DrawFn) -> tuple[RunConfig, Target]:
    """Configurations of all that its arguments can say."""
    target = draw(targets)
    sharded = target.ranks > 1
    known = [each for each in (*_FULL, *_ADAPTERS) if sharded or each["precision"] != "bf16"]
    micro_batch = draw(st.integers(1, 64))
    fields: dict[str, Any] = {
        **cookbook.pins("lora"),
        "model": draw(models),
        **draw(st.sampled_from(known)),
        "lora_rank": draw(st.integers(1, 256)),
        "lora_alpha": draw(st.integers(1, 512)),
        "lora_dropout": draw(st.sampled_from((0.0, 0.05))),
        "lora_targets": draw(st.sampled_from(("all-linear", "qv", "q_proj", "v_proj,o_proj,down_proj"))),
        "padding": micro_batch > 1 and draw(st.booleans()),
        "gradient_checkpointing": sharded and draw(st.booleans()),
        "expandable_segments": draw(st.booleans()),
        "evaluates": draw(st.booleans()),
        "seq_len": draw(st.integers(1, 131072)),
        "micro_batch": micro_batch,
        "accumulation": draw(st.integers(1, 64)),
        "sharding": "fsdp2" if sharded else "none",
        "offload": draw(st.sampled_from(("none", "optimizer+params"))) if sharded else "none",
        "sync_each_batch": sharded,
    }
    if fields["method"] == "qlora":
        fields["double_quantization"] = draw(st.booleans())
    return RunConfig.model_validate(fields), target


@given(expressible())
def test_what_its_arguments_can_say_comes_back(drawn: tuple[RunConfig, Target]) -> None:
    config, target = drawn
    files = rendered(cookbook.FORMAT, config, target)
    back = RunConfig.model_validate(read_back(cookbook.FORMAT, target, files))
    assert back.model == hub_id(config.model)
    for field in ("method", "quantization", "precision", "sharding", "offload", "seq_len", "micro_batch"):
        assert getattr(back, field) == getattr(config, field)
