"""Decoders of Llama's shape: grouped-query attention with rotary positions, then an MLP, one after the other.

What tells the families apart is a row of `TRAITS`; figures and defaults are those of the modules and config classes of
transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ftplan.profiles.hf_config.blocks import (
    ALL_KERNELS,
    NO_SDPA,
    Body,
    Heads,
    fused_qkv,
    gated_mlp,
    group,
    layer_norms,
    linear,
    plain_mlp,
    read_heads,
    rms,
    rotary_fraction,
    separate_qkv,
    windows_from_types,
)
from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.model_schema import AttentionProfile, LayerProfile, LinearProfile, MlpProfile, NormProfile

Windows = Callable[[Fields, int], Sequence[int | None]]
REQUIRED: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")


def no_window(_: Fields, layers: int) -> Sequence[int | None]:
    """Full attention in every layer."""
    return (None,) * layers


def window_everywhere(fields: Fields, layers: int) -> Sequence[int | None]:
    """Return the config's sliding window, if any, in every layer (Mistral, Phi-3, StarCoder2, Mixtral)."""
    return (fields.optional_size("sliding_window"),) * layers


def window_if_used(fields: Fields, layers: int) -> Sequence[int | None]:
    """Return the window in every layer, but only with ``use_sliding_window`` (Qwen3-MoE)."""
    return window_everywhere(fields, layers) if fields.flag("use_sliding_window", False) else (None,) * layers


def window_in_upper_layers(fields: Fields, layers: int) -> Sequence[int | None]:
    """Qwen2 and 3: with ``use_sliding_window``, the layers from ``max_window_layers`` on."""
    window = fields.optional_size("sliding_window") if fields.flag("use_sliding_window", False) else None
    first = fields.count_or("max_window_layers", 28)
    return windows_from_types(fields, window, [window is not None and index >= first for index in range(layers)])


def window_but_every(period: int) -> Windows:
    """Sliding layers with a full one as every n-th: ``sliding_window_pattern`` of the config, or ``period``."""

    def windows(fields: Fields, layers: int) -> Sequence[int | None]:
        full_every = fields.size_or("sliding_window_pattern", period)
        slides = [bool((index + 1) % full_every) for index in range(layers)]
        return windows_from_types(fields, fields.optional_size("sliding_window"), slides)

    return windows


def window_as_given(fields: Fields, layers: int) -> Sequence[int | None]:
    """Return an unknown model's window: what its own fields say, in every layer that no ``layer_types`` exempts."""
    used = fields.flag("use_sliding_window", True)
    window = fields.optional_size("sliding_window") if used else None
    return windows_from_types(fields, window, (window is not None,) * layers)


@dataclass(frozen=True)
class Traits:
    """How a family differs from Llama.

    A bias of None is read from the config (``attention_bias``, ``mlp_bias``), with False as its default.
    ``defaults`` are those of the config class that published files rely on.
    """

    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: Literal["none", "head", "width"] = "none"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    mlp: Literal["gated", "fused", "plain"] = "gated"
    fused_qkv: bool = False
    layer_norm: bool = False
    weighs_in_fp32: bool = False
    embedding_scale: bool = False
    windows: Windows = no_window
    kernels: tuple[str, ...] = ALL_KERNELS
    defaults: Mapping[str, object] | None = None


_FOUR_NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_QWEN2: Final = Traits(
    qkv_bias=True,
    out_bias=False,
    mlp_bias=False,
    windows=window_in_upper_layers,
    defaults={"num_key_value_heads": 32, "sliding_window": 4096},
)
# The published Gemma 3 files leave the sizes that equal the class defaults out.
_GEMMA3: Final = Traits(
    mlp_bias=False,
    qk_norm="head",
    norms=_FOUR_NORMS,
    embedding_scale=True,
    weighs_in_fp32=True,
    windows=window_but_every(6),
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
)

TRAITS: Final[Mapping[str, Traits]] = {
    "llama": Traits(),
    "mistral": Traits(
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        windows=window_everywhere,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3": Traits(
        mlp_bias=False,
        qk_norm="head",
        windows=window_in_upper_layers,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    ),
    "gemma": Traits(
        mlp_bias=False,
        embedding_scale=True,
        weighs_in_fp32=True,
        defaults={"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True},
    ),
    "gemma2": Traits(
        mlp_bias=False,
        norms=_FOUR_NORMS,
        embedding_scale=True,
        weighs_in_fp32=True,
        windows=window_but_every(2),
        kernels=NO_SDPA,  # modeling_gemma2: SDPA has no soft cap
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi3": Traits(
        qkv_bias=False, out_bias=False, mlp_bias=False, mlp="fused", fused_qkv=True, windows=window_everywhere
    ),
    # OLMo 2 normalises after attention and after the MLP, and its query and key norms span all heads.
    "olmo2": Traits(
        mlp_bias=False,
        qk_norm="width",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        weighs_in_fp32=True,
    ),
    "starcoder2": Traits(
        mlp="plain",
        layer_norm=True,
        windows=window_everywhere,
        defaults={"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
}

UNKNOWN: Final = Traits(windows=window_as_given)
"""A model type with a config of Llama's shape: its own fields decide."""


def build(fields: Fields, traits: Traits) -> Body:
    """Return the body of a model with ``traits``."""
    fields.require(*REQUIRED)
    heads = read_heads(fields)
    windows = traits.windows(fields, fields.size("num_hidden_layers"))
    return Body(
        hidden_size=heads.hidden,
        vocab_size=fields.size("vocab_size"),
        groups=group(windows, lambda window: _layer(fields, traits, heads, window)),
        outer_norms=_norms(traits, heads.hidden, "norm"),
        tied=fields.flag("tie_word_embeddings", False),
        head_bias=fields.flag("lm_head_bias", False) and traits is UNKNOWN,
        max_positions=fields.optional_size("max_position_embeddings"),
        logits_softcap=fields.is_set("final_logit_softcapping"),
        embedding_scale=traits.embedding_scale,
    )


def _layer(fields: Fields, traits: Traits, heads: Heads, window: int | None) -> LayerProfile:
    width = fields.size("intermediate_size")
    return LayerProfile(
        attention=attention(fields, traits, heads, window),
        mlp=MlpProfile(
            gated=traits.mlp != "plain",
            activation=fields.text_or("hidden_act", "silu"),
            intermediate_size=width,
            fused_gate_up=traits.mlp == "fused",
        ),
        linears=attention_linears(fields, traits, heads) + _mlp(fields, traits, heads.hidden, width),
        norms=_norms(traits, heads.hidden, *traits.norms) + qk_norms(traits, heads),
    )


def attention(fields: Fields, traits: Traits, heads: Heads, window: int | None) -> AttentionProfile:
    """Rotary grouped-query attention with ``window``."""
    return AttentionProfile(
        kind="gqa",
        heads=heads.count,
        kv_heads=heads.kv_count,
        head_dim=heads.dim,
        value_dim=heads.dim,
        rotary_dim=int(heads.dim * rotary_fraction(fields, 1.0)),
        window=window,
        softcap=fields.is_set("attn_logit_softcapping"),
        fused_qkv=traits.fused_qkv,
        supports=traits.kernels,
    )


def attention_linears(fields: Fields, traits: Traits, heads: Heads) -> tuple[LinearProfile, ...]:
    """Return the projections of attention, as ``traits`` and the bias fields have them."""
    declared = fields.flag("use_bias", fields.flag("attention_bias", False))
    qkv_bias = fields.flag("qkv_bias", declared) if traits.qkv_bias is None else traits.qkv_bias
    out_bias = fields.flag("attention_out_bias", declared) if traits.out_bias is None else traits.out_bias
    if traits.fused_qkv:
        return fused_qkv(heads, "self_attn.qkv_proj", "self_attn.o_proj", bias=qkv_bias, out_bias=out_bias)
    return separate_qkv(heads, bias=qkv_bias, out_bias=out_bias)


def qk_norms(traits: Traits, heads: Heads) -> tuple[NormProfile, ...]:
    """RMS norms of queries and keys: of each head, or across all heads."""
    if traits.qk_norm == "none":
        return ()
    per_head, late = traits.qk_norm == "head", traits.weighs_in_fp32
    return (
        NormProfile("q_norm", "rms", heads.dim if per_head else heads.q_width, over="query", weighs_in_fp32=late),
        NormProfile("k_norm", "rms", heads.dim if per_head else heads.kv_width, over="key", weighs_in_fp32=late),
    )


def _norms(traits: Traits, size: int, *names: str) -> tuple[NormProfile, ...]:
    return layer_norms(size, *names) if traits.layer_norm else rms(size, *names, weighs_in_fp32=traits.weighs_in_fp32)


def _mlp(fields: Fields, traits: Traits, hidden: int, width: int) -> tuple[LinearProfile, ...]:
    bias = fields.flag("use_bias", fields.flag("mlp_bias", False)) if traits.mlp_bias is None else traits.mlp_bias
    if traits.mlp == "plain":
        return plain_mlp(hidden, width, "mlp.c_fc", "mlp.c_proj", bias=bias)
    if traits.mlp == "fused":
        return (
            linear("mlp.gate_up_proj", hidden, 2 * width, "mlp_in", bias=bias),
            linear("mlp.down_proj", width, hidden, "mlp_act", bias=bias),
        )
    return gated_mlp(hidden, width, bias=bias)
