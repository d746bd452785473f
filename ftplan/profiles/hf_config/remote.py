"""Models whose code is on the hub, not in transformers: Qwen (1), Baichuan (1, 2), ChatGLM (2 to GLM-4), InternLM2.

Module names, shapes and attention kernels are those of that code (``modeling_qwen.py`` and so on), which ftplan never
runs. ``supports`` says what the code computes attention with; where it has one way, it ignores ``attn_implementation``.
"""

from __future__ import annotations

from typing import Final

from ftplan.profiles.hf_config.blocks import (
    ALL_KERNELS,
    EAGER_ONLY,
    Body,
    Heads,
    fused_qkv,
    gated_mlp,
    layer_norms,
    linear,
    read_heads,
    rms,
)
from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.model_schema import (
    AttentionProfile,
    LayerGroup,
    LayerProfile,
    LinearProfile,
    MlpProfile,
    NormProfile,
)

_CORE: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")


def _attention(heads: Heads, supports: tuple[str, ...], *, rotary_dim: int) -> AttentionProfile:
    return AttentionProfile(
        kind="gqa",
        heads=heads.count,
        kv_heads=heads.kv_count,
        head_dim=heads.dim,
        value_dim=heads.dim,
        positions="rope" if rotary_dim else "alibi",
        rotary_dim=rotary_dim,
        fused_qkv=True,
        supports=supports,
    )


def _body(fields: Fields, layer: LayerProfile, norms: tuple[NormProfile, ...]) -> Body:
    return Body(
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        groups=(LayerGroup(fields.size("num_hidden_layers"), layer),),
        outer_norms=norms,
        tied=fields.flag("tie_word_embeddings", False),
        max_positions=fields.optional_size("max_position_embeddings"),
    )


def _gated(fields: Fields, width: int, *, fused: bool = False) -> MlpProfile:
    return MlpProfile(True, fields.text_or("hidden_act", "silu"), width, fused_gate_up=fused)


def qwen(fields: Fields) -> Body:
    """Qwen (1): c_attn has a bias whatever ``no_bias`` says; each MLP branch has half of intermediate_size.

    Attention is torch's SDPA with an explicit mask, or the flash-attn library if that is installed.
    """
    fields.require(*_CORE)
    heads, double = read_heads(fields), fields.size("intermediate_size")
    if double % 2:
        raise fields.fail(f"intermediate_size {double} is odd; Qwen splits it between two branches")
    bias, width = not fields.flag("no_bias", True), double // 2
    rotary = int(heads.dim * fields.fraction_or("rotary_pct", 1.0))
    layer = LayerProfile(
        attention=_attention(heads, ("sdpa", "flash_attention_2"), rotary_dim=rotary),
        mlp=_gated(fields, width),
        linears=(
            *fused_qkv(heads, "attn.c_attn", "attn.c_proj", bias=True, out_bias=bias),
            linear("mlp.w1", heads.hidden, width, "mlp_in", bias=bias),
            linear("mlp.w2", heads.hidden, width, "mlp_in", bias=bias),
            linear("mlp.c_proj", width, heads.hidden, "mlp_act", bias=bias),
        ),
        norms=rms(heads.hidden, "ln_1", "ln_2"),
    )
    return _body(fields, layer, rms(heads.hidden, "ln_f"))


def baichuan(fields: Fields) -> Body:
    """Baichuan: W_pack is a fused qkv without bias. The 7B has rotary positions, the 13B ALiBi.

    Only the 7B's config class knows ``max_position_embeddings``. The 7B's code calls SDPA with an explicit mask, the
    13B's multiplies and takes the softmax itself.
    """
    fields.require(*_CORE)
    heads, width = read_heads(fields), fields.size("intermediate_size")
    rotary = "max_position_embeddings" in fields.config
    layer = LayerProfile(
        attention=_attention(heads, ("sdpa",) if rotary else EAGER_ONLY, rotary_dim=heads.dim if rotary else 0),
        mlp=_gated(fields, width),
        linears=fused_qkv(heads, "self_attn.W_pack", "self_attn.o_proj", bias=False, out_bias=False)
        + gated_mlp(heads.hidden, width),
        norms=rms(heads.hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return _body(fields, layer, rms(heads.hidden, "norm"))


def chatglm(fields: Fields) -> Body:
    """ChatGLM2, ChatGLM3 and GLM-4-9B (June 2024): fused qkv with bias, fused gate and up, rotary on half a head.

    ``CoreAttention`` calls SDPA under torch 2; later revisions of GLM-4's code also have eager and flash.
    """
    fields.require(*_CORE)
    heads, width = _chatglm_heads(fields), fields.size("intermediate_size")
    bias, norm = fields.flag("add_bias_linear", False), rms if fields.flag("rmsnorm", True) else layer_norms
    layer = LayerProfile(
        attention=_attention(heads, ("sdpa",), rotary_dim=heads.dim // 2),
        mlp=_gated(fields, width, fused=True),
        linears=(
            *_chatglm_attention(fields, heads, bias=bias),
            linear("mlp.dense_h_to_4h", heads.hidden, 2 * width, "mlp_in", bias=bias),
            linear("mlp.dense_4h_to_h", width, heads.hidden, "mlp_act", bias=bias),
        ),
        norms=norm(heads.hidden, "input_layernorm", "post_attention_layernorm"),
    )
    has_final_norm = fields.flag("post_layer_norm", True)
    return _body(fields, layer, norm(heads.hidden, "final_layernorm") if has_final_norm else ())


def _chatglm_heads(fields: Fields) -> Heads:
    heads = read_heads(fields)
    if not fields.flag("multi_query_attention", False):
        return heads
    groups = fields.size("multi_query_group_num")
    if heads.count % groups:
        raise fields.fail(f"multi_query_group_num {groups} does not divide num_attention_heads {heads.count}")
    return Heads(heads.hidden, heads.count, groups, heads.dim)


def _chatglm_attention(fields: Fields, heads: Heads, *, bias: bool) -> tuple[LinearProfile, ...]:
    qkv_bias = bias or fields.flag("add_qkv_bias", False)
    return fused_qkv(heads, "self_attention.query_key_value", "self_attention.dense", bias=qkv_bias, out_bias=bias)


def internlm2(fields: Fields) -> Body:
    """InternLM2 and 2.5: wqkv and wo with an optional bias, w1, w3 and w2 without; all three kernels."""
    fields.require(*_CORE)
    heads, width = read_heads(fields), fields.size("intermediate_size")
    bias = fields.flag("bias", False)
    layer = LayerProfile(
        attention=_attention(heads, ALL_KERNELS, rotary_dim=heads.dim),
        mlp=_gated(fields, width),
        linears=(
            *fused_qkv(heads, "attention.wqkv", "attention.wo", bias=bias, out_bias=bias),
            linear("feed_forward.w1", heads.hidden, width, "mlp_in"),
            linear("feed_forward.w3", heads.hidden, width, "mlp_in"),
            linear("feed_forward.w2", width, heads.hidden, "mlp_act"),
        ),
        norms=rms(heads.hidden, "attention_norm", "ffn_norm"),
    )
    return _body(fields, layer, rms(heads.hidden, "norm"))
