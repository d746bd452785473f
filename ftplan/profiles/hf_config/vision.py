"""Vision models: a text decoder with a tower and a projector in front (Gemma 3, Qwen2-VL, Qwen2.5-VL).

Counted for loading, quantization and LoRA; samples of text alone do not run them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ftplan.profiles.hf_config.blocks import Body, linear
from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.hf_config.llama import TRAITS, build
from ftplan.profiles.model_schema import LinearProfile, Reads, VisionProfile

_SIGLIP_DEFAULTS: Final[Mapping[str, object]] = {"in_channels": 3, "vision_use_head": True}
_QWEN2_DEFAULTS: Final[Mapping[str, object]] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "mlp_ratio": 4,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN25_DEFAULTS: Final[Mapping[str, object]] = {
    **_QWEN2_DEFAULTS,
    "intermediate_size": 3420,
    "out_hidden_size": 3584,
}
Counted = tuple[int, LinearProfile]


def gemma3(fields: Fields) -> Body:
    """Gemma 3 from 4B: a SigLIP tower, and a projector that is one bare matrix (no ``nn.Linear``) with a norm."""
    text = fields.sub("text_config", TRAITS["gemma3_text"].defaults)
    tower = fields.sub("vision_config", _SIGLIP_DEFAULTS)
    body = build(text, TRAITS["gemma3_text"])
    tied = fields.flag("tie_word_embeddings", text.flag("tie_word_embeddings", True))
    return replace(body, tied=tied, vision=_siglip(tower, body.hidden_size))


def _siglip(fields: Fields, text_size: int) -> VisionProfile:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
    fields.require(*names)
    hidden, width, depth, image, patch = (fields.size(name) for name in names)
    layer = [_linear(f"self_attn.{name}", hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    layer += [_linear("mlp.fc1", hidden, width), _linear("mlp.fc2", width, hidden, "mlp_act")]
    linears = tuple((depth, each) for each in layer)
    embeddings = hidden * (fields.size("in_channels") * patch**2 + 1 + (image // patch) ** 2)
    norms = 2 * hidden * (2 * depth + 1)
    projector = hidden * text_size + hidden
    head = _siglip_head(hidden, width) if fields.flag("vision_use_head", True) else ()
    # The pooling head besides: a probe, the fused input projection of its attention, a norm.
    head_rest = hidden + 3 * (hidden**2 + hidden) + 2 * hidden if head else 0
    return VisionProfile(_total(linears + head) + embeddings + norms + projector + head_rest, linears + head)


def _siglip_head(hidden: int, width: int) -> tuple[Counted, ...]:
    return (
        (1, _linear("head.attention.out_proj", hidden, hidden)),
        (1, _linear("head.mlp.fc1", hidden, width)),
        (1, _linear("head.mlp.fc2", width, hidden, "mlp_act")),
    )


def qwen2_vl(fields: Fields) -> Body:
    """Qwen2-VL: layer norms with biases and a two-matrix MLP in the tower, then a merger of patches."""
    tower = fields.sub("vision_config", _QWEN2_DEFAULTS)
    dim, out = tower.size("embed_dim"), tower.size("hidden_size")
    width = dim * tower.size("mlp_ratio")
    mlp = [_linear("mlp.fc1", dim, width), _linear("mlp.fc2", width, dim, "mlp_act")]
    return replace(_qwen_text(fields, "qwen2_vl"), vision=_qwen_tower(tower, dim, out, mlp, norm_size=2 * dim))


def qwen2_5_vl(fields: Fields) -> Body:
    """Qwen2.5-VL: RMS norms and a gated MLP with biases in the tower, then a merger of patches."""
    tower = fields.sub("vision_config", _QWEN25_DEFAULTS)
    dim, out, width = tower.size("hidden_size"), tower.size("out_hidden_size"), tower.size("intermediate_size")
    mlp = [_linear("mlp.gate_proj", dim, width), _linear("mlp.up_proj", dim, width)]
    mlp.append(_linear("mlp.down_proj", width, dim, "mlp_act"))
    return replace(_qwen_text(fields, "qwen2_5_vl"), vision=_qwen_tower(tower, dim, out, mlp, norm_size=dim))


def _qwen_text(fields: Fields, family: str) -> Body:
    """Return the text model: flat in the published files, under ``text_config`` in those that transformers 5 writes."""
    text = fields.sub("text_config", TRAITS[family].defaults) if fields.is_set("text_config") else fields
    body = build(text, TRAITS[family])
    return replace(body, tied=fields.flag("tie_word_embeddings", False) or body.tied)


def _qwen_tower(fields: Fields, dim: int, out: int, mlp: list[LinearProfile], *, norm_size: int) -> VisionProfile:
    depth, merged = fields.size("depth"), dim * fields.size("spatial_merge_size") ** 2
    block = [_linear("attn.qkv", dim, 3 * dim), _linear("attn.proj", dim, dim, "attn_out"), *mlp]
    merger = [_linear("merger.mlp.0", merged, merged), _linear("merger.mlp.2", merged, out)]
    linears = tuple((depth, each) for each in block) + tuple((1, each) for each in merger)
    patch = fields.size("in_channels") * fields.size("temporal_patch_size") * fields.size("patch_size") ** 2
    return VisionProfile(_total(linears) + dim * patch + norm_size * (2 * depth + 1), linears)


def _linear(path: str, in_features: int, out_features: int, reads: Reads = "attn_in") -> LinearProfile:
    """Every linear layer of these towers has a bias."""
    return replace(linear(path, in_features, out_features, reads, bias=True), part="vision")


def _total(linears: tuple[Counted, ...]) -> int:
    return sum(count * each.params for count, each in linears)
