"""DeepSeek V2 and V3: latent attention, and shared experts beside routed ones. Modules as in transformers 5.23."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ftplan.profiles.hf_config.blocks import Body, gated_mlp, group, linear, rms
from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.hf_config.moe import CORE, LAYER_NORMS, QWEN_NAMES, outer_body, read_experts, shadowed
from ftplan.profiles.model_schema import (
    AttentionProfile,
    ExpertsProfile,
    LayerProfile,
    LinearProfile,
    MlpProfile,
    NormProfile,
)

_LATENT_SIZES: Final = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "deepseek_v2": {"q_lora_rank": 1536, "first_k_dense_replace": 0, "n_shared_experts": 2},
    "deepseek_v3": {"q_lora_rank": 1536, "first_k_dense_replace": 3, "n_shared_experts": 1},
}


def deepseek_v2(fields: Fields) -> Body:
    """DeepSeek V2: the first layers are dense, the others have routed and shared experts."""
    return _deepseek(fields, mlp_bias=fields.flag("mlp_bias", False), correction=False)


def deepseek_v3(fields: Fields) -> Body:
    """DeepSeek V3: as V2, with a correction bias for each expert, which the published total counts.

    transformers holds that bias as a buffer, and leaves out the layer that predicts further tokens.
    """
    return _deepseek(fields, mlp_bias=False, correction=True)


def _deepseek(fields: Fields, *, mlp_bias: bool, correction: bool) -> Body:
    fields.require(*CORE, "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", *_LATENT_SIZES)
    experts = read_experts(fields, fields.size("moe_intermediate_size"), QWEN_NAMES, correction=correction)
    first_routed = fields.count_or("first_k_dense_replace", 0)
    kinds = [index >= first_routed for index in range(fields.size("num_hidden_layers"))]
    return outer_body(fields, group(kinds, lambda routed: _layer(fields, experts if routed else None, mlp_bias)))


def _layer(fields: Fields, experts: ExpertsProfile | None, mlp_bias: bool) -> LayerProfile:
    hidden = fields.size("hidden_size")
    attention, projections, latent_norms = _latent_attention(fields)
    shared = experts.intermediate_size * fields.count_or("n_shared_experts", 0) if experts else 0
    width = shared if experts else fields.size("intermediate_size")
    module = "mlp.shared_experts" if experts else "mlp"
    return LayerProfile(
        attention=attention,
        mlp=MlpProfile(True, fields.text_or("hidden_act", "silu"), width, experts=experts),
        linears=projections + (shadowed(gated_mlp(hidden, width, bias=mlp_bias, module=module)) if width else ()),
        norms=rms(hidden, *LAYER_NORMS) + latent_norms,
    )


def _latent_attention(fields: Fields) -> tuple[AttentionProfile, tuple[LinearProfile, ...], tuple[NormProfile, ...]]:
    """Keys and values come from one latent; queries from another where ``q_lora_rank`` is set."""
    hidden, count = fields.size("hidden_size"), fields.size("num_attention_heads")
    latent, nope, rope, value = (fields.size(name) for name in _LATENT_SIZES)
    bias, q_latent = fields.flag("attention_bias", False), fields.optional_size("q_lora_rank")
    linears = (
        *_queries(hidden, count * (nope + rope), q_latent, bias=bias),
        linear("self_attn.kv_a_proj_with_mqa", hidden, latent + rope, "attn_in", bias=bias),
        linear("self_attn.kv_b_proj", latent, count * (nope + value), "kv_latent"),
        linear("self_attn.o_proj", count * value, hidden, "attn_out", bias=bias),
    )
    norms = [NormProfile("q_a_layernorm", "rms", q_latent, over="q_latent")] if q_latent else []
    norms.append(NormProfile("kv_a_layernorm", "rms", latent, over="kv_latent"))
    return AttentionProfile("mla", count, count, nope + rope, value, rotary_dim=rope), linears, tuple(norms)


def _queries(hidden: int, width: int, latent: int | None, *, bias: bool) -> tuple[LinearProfile, ...]:
    if latent is None:
        return (linear("self_attn.q_proj", hidden, width, "attn_in"),)
    return (
        linear("self_attn.q_a_proj", hidden, latent, "attn_in", bias=bias),
        linear("self_attn.q_b_proj", latent, width, "q_latent"),
    )
