"""Mixtures of experts with grouped-query attention (Mixtral, Qwen3-MoE, gpt-oss), and what all mixtures share.

In transformers 5 the routed experts of a layer are two 3-D parameters, ``gate_up_proj [experts, 2 x width, hidden]``
and ``down_proj [experts, hidden, width]`` (gpt-oss: transposed and with biases). The router is a parameter of its own
module, and only shared experts are ``nn.Linear``. peft still takes the old names (`ExpertsProfile.peft_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ftplan.profiles.hf_config.blocks import (
    EAGER_ONLY,
    Body,
    gated_mlp,
    group,
    linear,
    read_heads,
    rms,
)
from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.hf_config.llama import (
    Traits,
    Windows,
    attention,
    attention_linears,
    qk_norms,
    window_but_every,
    window_everywhere,
    window_if_used,
)
from ftplan.profiles.model_schema import ExpertsProfile, LayerGroup, LayerProfile, LinearProfile, MlpProfile

CORE: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
LAYER_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_MIXTRAL_NAMES: Final = (("w1", "gate_up_proj"), ("w3", "gate_up_proj"), ("w2", "down_proj"), ("gate", "gate"))
QWEN_NAMES: Final = (
    ("gate_proj", "gate_up_proj"),
    ("up_proj", "gate_up_proj"),
    ("down_proj", "down_proj"),
    ("gate", "gate"),
)
"""peft 0.21, `_MOE_TARGET_MODULE_MAPPING`: also for DeepSeek; gpt-oss has no such names."""

DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "sliding_window": 4096,
    },
    "gpt_oss": {
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "attention_bias": True,
    },
}


def read_experts(
    fields: Fields,
    width: int,
    names: tuple[tuple[str, str], ...],
    *,
    router: str = "gate",
    bias: bool = False,
    correction: bool = False,
) -> ExpertsProfile:
    """Routed experts of ``width``; ``correction`` adds a bias for each expert to the router."""
    hidden, count = fields.size("hidden_size"), fields.size("num_local_experts")
    gate_up = linear("mlp.experts.gate_up_proj", hidden, 2 * width, "expert_in", bias=bias)
    down = linear("mlp.experts.down_proj", width, hidden, "expert_act", bias=bias)
    gate = replace(linear(f"mlp.{router}", hidden, count, "mlp_in", bias=bias), is_linear=False)
    return ExpertsProfile(
        count=count,
        per_token=fields.size("num_experts_per_tok"),
        intermediate_size=width,
        params=count * (gate_up.params + down.params),
        router_params=gate.params + (count if correction else 0),
        weights=(replace(gate_up, is_linear=False), replace(down, is_linear=False)),
        router=gate,
        peft_names=names,
    )


def outer_body(fields: Fields, groups: tuple[LayerGroup, ...]) -> Body:
    """Return a body of ``groups`` between an embedding and a head without bias."""
    return Body(
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        groups=groups,
        outer_norms=rms(fields.size("hidden_size"), "norm"),
        tied=fields.flag("tie_word_embeddings", False),
        max_positions=fields.optional_size("max_position_embeddings"),
    )


def mixtral(fields: Fields) -> Body:
    """Mixtral: every layer routed, no biases."""
    fields.require(*CORE, "intermediate_size")
    experts = read_experts(fields, fields.size("intermediate_size"), _MIXTRAL_NAMES)
    return _uniform(fields, Traits(qkv_bias=False, out_bias=False), window_everywhere, experts)


def gpt_oss(fields: Fields) -> Body:
    """gpt-oss: biases throughout, attention sinks (one parameter a head), alternating windows.

    Its class has no SDPA, because of the sinks, and replaces a request for flash_attention_2 by kernels of version 3
    and later that are downloaded and run on few cards: eager is what works everywhere.
    """
    fields.require(*CORE, "intermediate_size")
    experts = read_experts(fields, fields.size("intermediate_size"), (), router="router", bias=True)
    return _uniform(fields, Traits(kernels=EAGER_ONLY, weighs_in_fp32=True), window_but_every(2), experts, sinks=True)


def _uniform(fields: Fields, traits: Traits, windows: Windows, experts: ExpertsProfile, *, sinks: bool = False) -> Body:
    heads = read_heads(fields)
    mlp = MlpProfile(True, fields.text_or("hidden_act", "silu"), 0, experts=experts)
    linears = attention_linears(fields, traits, heads)
    norms = rms(heads.hidden, *LAYER_NORMS, weighs_in_fp32=traits.weighs_in_fp32)

    def layer(window: int | None) -> LayerProfile:
        mixed = attention(fields, traits, heads, window)
        mixed = replace(mixed, sinks=sinks, extra_params=heads.count if sinks else 0)
        return LayerProfile(mixed, mlp, linears, norms)

    return outer_body(fields, group(windows(fields, fields.size("num_hidden_layers")), layer))


def qwen3_moe(fields: Fields) -> Body:
    """Qwen3-MoE: routed layers every ``decoder_sparse_step``, dense ones where ``mlp_only_layers`` says."""
    fields.require(*CORE)
    heads, traits = read_heads(fields), Traits(qk_norm="head")
    experts = read_experts(fields, fields.size("moe_intermediate_size"), QWEN_NAMES)
    window = window_if_used(fields, 1)[0]

    def layer(routed: bool) -> LayerProfile:
        width = 0 if routed else fields.size("intermediate_size")
        dense = () if routed else shadowed(gated_mlp(heads.hidden, width))
        return LayerProfile(
            attention=attention(fields, traits, heads, window),
            mlp=MlpProfile(True, fields.text_or("hidden_act", "silu"), width, experts=experts if routed else None),
            linears=attention_linears(fields, traits, heads) + dense,
            norms=rms(heads.hidden, *LAYER_NORMS) + qk_norms(traits, heads),
        )

    return outer_body(fields, group(_routed(fields), layer))


def _routed(fields: Fields) -> list[bool]:
    step, dense = fields.size_or("decoder_sparse_step", 1), fields.sequence("mlp_only_layers") or ()
    return [index not in dense and (index + 1) % step == 0 for index in range(fields.size("num_hidden_layers"))]


def shadowed(linears: tuple[LinearProfile, ...]) -> tuple[LinearProfile, ...]:
    """MLP modules whose names peft redirects to the experts, so that LoRA passes them by (peft 0.21)."""
    return tuple(replace(each, shadowed=True) for each in linears)
