"""Decoders before Llama: GPT-2, GPT-J, GPT-NeoX (Pythia), OPT, BLOOM, Falcon and Phi (1 to 2).

Modules and defaults as in transformers 5.23.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from ftplan.profiles.hf_config.blocks import (
    ALL_KERNELS,
    EAGER_ONLY,
    NO_SDPA,
    Body,
    Heads,
    fused_qkv,
    layer_norms,
    plain_mlp,
    read_heads,
    rotary_fraction,
    separate_qkv,
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

_CORE: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def _body(fields: Fields, layer: LayerProfile, norms: tuple[NormProfile, ...], *, tied: bool) -> Body:
    return Body(
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        groups=(LayerGroup(fields.size("num_hidden_layers"), layer),),
        outer_norms=norms,
        tied=fields.flag("tie_word_embeddings", tied),
        max_positions=fields.optional_size("max_position_embeddings"),
    )


def _attention(
    heads: Heads,
    *,
    positions: Literal["rope", "alibi", "learned"],
    rotary_dim: int = 0,
    fused: bool = False,
    supports: tuple[str, ...] = ALL_KERNELS,
) -> AttentionProfile:
    return AttentionProfile(
        kind="gqa",
        heads=heads.count,
        kv_heads=heads.kv_count,
        head_dim=heads.dim,
        value_dim=heads.dim,
        positions=positions,
        rotary_dim=rotary_dim,
        fused_qkv=fused,
        supports=supports,
    )


def _mlp(fields: Fields, width: int, activation: str) -> MlpProfile:
    return MlpProfile(gated=False, activation=fields.text_or("hidden_act", activation), intermediate_size=width)


def gpt2(fields: Fields) -> Body:
    """GPT-2: learned positions, fused c_attn; its Conv1D modules count as linear for peft and bitsandbytes."""
    fields.require(*_CORE, "max_position_embeddings")
    if fields.flag("add_cross_attention", False):
        raise fields.fail("add_cross_attention is not mapped")
    heads = read_heads(fields)
    width = fields.size_or("intermediate_size", 4 * heads.hidden)
    layer = LayerProfile(
        attention=_attention(heads, positions="learned", fused=True),
        mlp=_mlp(fields, width, "gelu_new"),
        linears=fused_qkv(heads, "attn.c_attn", "attn.c_proj", bias=True, out_bias=True)
        + plain_mlp(heads.hidden, width, "mlp.c_fc", "mlp.c_proj", bias=True),
        norms=layer_norms(heads.hidden, "ln_1", "ln_2"),
    )
    return _with_positions(
        _body(fields, layer, layer_norms(heads.hidden, "ln_f"), tied=True), fields.size("max_position_embeddings")
    )


def _with_positions(body: Body, rows: int) -> Body:
    return replace(body, position_params=rows * body.hidden_size)


def gptj(fields: Fields) -> Body:
    """GPT-J: attention without biases beside an MLP with them, from one norm; a biased head."""
    fields.require(*_CORE)
    heads = read_heads(fields)
    width = fields.size_or("intermediate_size", 4 * heads.hidden)
    layer = LayerProfile(
        attention=_attention(
            heads, positions="rope", rotary_dim=fields.size_or("rotary_dim", heads.dim), supports=NO_SDPA
        ),
        mlp=_mlp(fields, width, "gelu_new"),
        linears=separate_qkv(heads, bias=False, out_bias=False, module="attn", out="out_proj")
        + plain_mlp(heads.hidden, width, "mlp.fc_in", "mlp.fc_out", bias=True),
        norms=layer_norms(heads.hidden, "ln_1"),
        parallel=True,
    )
    return _with_head_bias(_body(fields, layer, layer_norms(heads.hidden, "ln_f"), tied=False))


def _with_head_bias(body: Body) -> Body:
    return replace(body, head_bias=True)


def gpt_neox(fields: Fields) -> Body:
    """GPT-NeoX and Pythia: fused query_key_value, two norms, rotary positions on a quarter of each head."""
    fields.require(*_CORE, "intermediate_size")
    heads = read_heads(fields)
    width, bias = fields.size("intermediate_size"), fields.flag("attention_bias", True)
    rotary = fields.fraction_or("rotary_pct", rotary_fraction(fields, 0.25))
    layer = LayerProfile(
        attention=_attention(heads, positions="rope", rotary_dim=int(heads.dim * rotary), fused=True),
        mlp=_mlp(fields, width, "gelu"),
        linears=fused_qkv(heads, "attention.query_key_value", "attention.dense", bias=bias, out_bias=bias)
        + plain_mlp(heads.hidden, width, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
        norms=layer_norms(heads.hidden, "input_layernorm", "post_attention_layernorm"),
        parallel=fields.flag("use_parallel_residual", True),
    )
    return _body(fields, layer, layer_norms(heads.hidden, "final_layer_norm"), tied=False)


def opt(fields: Fields) -> Body:
    """OPT: learned positions with two rows more than positions, biases throughout."""
    fields.require(*_CORE, "intermediate_size", "max_position_embeddings")
    heads = read_heads(fields)
    if fields.size_or("word_embed_proj_dim", heads.hidden) != heads.hidden:
        raise fields.fail("word_embed_proj_dim differs from hidden_size (OPT-350m), which is not mapped")
    if not fields.flag("layer_norm_elementwise_affine", True):
        raise fields.fail("layer_norm_elementwise_affine false is not mapped")
    width, bias = fields.size("intermediate_size"), fields.flag("enable_bias", True)
    layer = LayerProfile(
        attention=_attention(heads, positions="learned"),
        mlp=_mlp(fields, width, "relu"),
        linears=separate_qkv(heads, bias=bias, out_bias=bias, out="out_proj")
        + plain_mlp(heads.hidden, width, "fc1", "fc2", bias=bias),
        norms=layer_norms(heads.hidden, "self_attn_layer_norm", "final_layer_norm"),
    )
    # OPTDecoder has a final norm only where layers normalise first.
    has_final_norm = fields.flag("do_layer_norm_before", True) and not fields.flag("_remove_final_layer_norm", False)
    norms = layer_norms(heads.hidden, "final_layer_norm") if has_final_norm else ()
    return _with_positions(_body(fields, layer, norms, tied=True), fields.size("max_position_embeddings") + 2)


def bloom(fields: Fields) -> Body:
    """BLOOM: ALiBi, a norm after the embedding, biases throughout; eager attention is all its class has."""
    fields.require(*_CORE)
    heads = read_heads(fields)
    layer = LayerProfile(
        attention=_attention(heads, positions="alibi", fused=True, supports=EAGER_ONLY),
        mlp=_mlp(fields, 4 * heads.hidden, "gelu"),
        linears=fused_qkv(heads, "self_attention.query_key_value", "self_attention.dense", bias=True, out_bias=True)
        + plain_mlp(heads.hidden, 4 * heads.hidden, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
        norms=layer_norms(heads.hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return _body(fields, layer, layer_norms(heads.hidden, "word_embeddings_layernorm", "ln_f"), tied=True)


def phi(fields: Fields) -> Body:
    """Phi-1, 1.5 and 2: biases throughout, attention beside the MLP, a biased head."""
    fields.require(*_CORE, "intermediate_size")
    heads = read_heads(fields)
    width = fields.size("intermediate_size")
    layer = LayerProfile(
        attention=_attention(heads, positions="rope", rotary_dim=int(heads.dim * rotary_fraction(fields, 0.5))),
        mlp=_mlp(fields, width, "gelu_new"),
        linears=separate_qkv(heads, bias=True, out_bias=True, out="dense")
        + plain_mlp(heads.hidden, width, "mlp.fc1", "mlp.fc2", bias=True),
        norms=layer_norms(heads.hidden, "input_layernorm") + _phi_qk_norms(fields, heads),
        parallel=True,
    )
    return _with_head_bias(_body(fields, layer, layer_norms(heads.hidden, "final_layernorm"), tied=False))


def _phi_qk_norms(fields: Fields, heads: Heads) -> tuple[NormProfile, ...]:
    if not fields.flag("qk_layernorm", False):
        return ()
    return (
        NormProfile("q_layernorm", "layer", heads.dim, bias=True, over="query"),
        NormProfile("k_layernorm", "layer", heads.dim, bias=True, over="key"),
    )


def falcon(fields: Fields) -> Body:
    """Falcon: one key-value head, or groups of them in the new decoder architecture; ffn is 4 x hidden."""
    fields.require(*_CORE)
    heads = _falcon_heads(fields)
    width = fields.size_or("intermediate_size", 4 * heads.hidden)
    bias, alibi = fields.flag("bias", False), fields.flag("alibi", False)
    attention = _attention(
        heads,
        positions="alibi" if alibi else "rope",
        rotary_dim=0 if alibi else heads.dim,
        fused=True,
        # FalconFlashAttention2 has no ALiBi.
        supports=("sdpa", "eager") if alibi else ALL_KERNELS,
    )
    layer = LayerProfile(
        # The one key-value head reaches sdpa unrepeated, and its fused kernels want as many as there are queries.
        attention=replace(attention, sdpa_math=heads.kv_count == 1),
        mlp=_mlp(fields, width, "gelu"),
        linears=_falcon_linears(heads, width, bias=bias),
        norms=layer_norms(heads.hidden, *_falcon_norms(fields)),
        parallel=fields.flag("parallel_attn", True),
    )
    return _body(fields, layer, layer_norms(heads.hidden, "ln_f"), tied=True)


def _falcon_heads(fields: Fields) -> Heads:
    all_heads = read_heads(fields)
    if not fields.flag("new_decoder_architecture", False) and fields.flag("multi_query", True):
        return Heads(all_heads.hidden, all_heads.count, 1, all_heads.dim)
    return all_heads


def _falcon_norms(fields: Fields) -> tuple[str, ...]:
    if not fields.flag("parallel_attn", True):
        return "input_layernorm", "post_attention_layernorm"
    default = 2 if fields.flag("new_decoder_architecture", False) else 1
    two = fields.size_or("num_ln_in_parallel_attn", default) == 2
    return ("ln_attn", "ln_mlp") if two else ("input_layernorm",)


def _falcon_linears(heads: Heads, width: int, *, bias: bool) -> tuple[LinearProfile, ...]:
    attention = fused_qkv(heads, "self_attention.query_key_value", "self_attention.dense", bias=bias, out_bias=bias)
    mlp = plain_mlp(heads.hidden, width, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=bias)
    # FalconLinear is a subclass, and bitsandbytes' replacement compares types exactly: 4-bit Falcon stays in 16 bits.
    return tuple(replace(each, quantizable=False) for each in attention + mlp)
