"""The pieces that families share: heads, projections, norms, windows, and what a family hands back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.model_schema import (
    LayerGroup,
    LayerProfile,
    LinearProfile,
    NormProfile,
    Part,
    Reads,
    VisionProfile,
)

Kind = TypeVar("Kind", bound=Hashable)

ALL_KERNELS: Final = ("sdpa", "eager", "flash_attention_2")
NO_SDPA: Final = ("eager", "flash_attention_2")
EAGER_ONLY: Final = ("eager",)


@dataclass(frozen=True)
class Body:
    """What a family finds in a config: a `ModelProfile` but for its name, source and dtype."""

    hidden_size: int
    vocab_size: int
    groups: tuple[LayerGroup, ...]
    outer_norms: tuple[NormProfile, ...]
    tied: bool
    head_bias: bool = False
    position_params: int = 0
    max_positions: int | None = None
    logits_softcap: bool = False
    embedding_scale: bool = False
    vision: VisionProfile | None = None


@dataclass(frozen=True)
class Heads:
    """Sizes of grouped-query attention over a hidden state of ``hidden`` elements."""

    hidden: int
    count: int
    kv_count: int
    dim: int

    @property
    def q_width(self) -> int:
        """Elements of all queries of a token."""
        return self.count * self.dim

    @property
    def kv_width(self) -> int:
        """Elements of all keys (or values) of a token."""
        return self.kv_count * self.dim


def read_heads(fields: Fields) -> Heads:
    """Read the sizes of attention: head_dim defaults to hidden_size over heads, key-value heads to as many as heads."""
    hidden, count = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_count = fields.size_or("num_key_value_heads", count)
    if not fields.is_set("head_dim") and hidden % count:
        raise fields.fail(f"num_attention_heads {count} does not divide hidden_size {hidden}", hint="or give head_dim")
    if count % kv_count:
        raise fields.fail(f"num_key_value_heads {kv_count} does not divide num_attention_heads {count}")
    return Heads(hidden, count, kv_count, fields.size_or("head_dim", hidden // count))


def linear(path: str, in_features: int, out_features: int, reads: Reads, *, bias: bool = False) -> LinearProfile:
    """Build a weight matrix at ``path`` inside its layer; what it reads tells if it is attention's or the MLP's."""
    module, _, name = path.rpartition(".")
    part: Part = "mlp" if reads in {"mlp_in", "mlp_act", "expert_in", "expert_act"} else "attention"
    return LinearProfile(name, part, in_features, out_features, bias, reads, module=module)


def separate_qkv(
    heads: Heads, *, bias: bool, out_bias: bool, module: str = "self_attn", out: str = "o_proj"
) -> tuple[LinearProfile, ...]:
    """q_proj, k_proj and v_proj with a bias each or none, and the output projection."""
    return (
        linear(f"{module}.q_proj", heads.hidden, heads.q_width, "attn_in", bias=bias),
        linear(f"{module}.k_proj", heads.hidden, heads.kv_width, "attn_in", bias=bias),
        linear(f"{module}.v_proj", heads.hidden, heads.kv_width, "attn_in", bias=bias),
        linear(f"{module}.{out}", heads.q_width, heads.hidden, "attn_out", bias=out_bias),
    )


def fused_qkv(heads: Heads, name: str, out: str, *, bias: bool, out_bias: bool) -> tuple[LinearProfile, ...]:
    """One matrix for queries, keys and values, and the output projection."""
    return (
        linear(name, heads.hidden, heads.q_width + 2 * heads.kv_width, "attn_in", bias=bias),
        linear(out, heads.q_width, heads.hidden, "attn_out", bias=out_bias),
    )


def gated_mlp(hidden: int, width: int, *, bias: bool = False, module: str = "mlp") -> tuple[LinearProfile, ...]:
    """gate_proj, up_proj and down_proj."""
    return (
        linear(f"{module}.gate_proj", hidden, width, "mlp_in", bias=bias),
        linear(f"{module}.up_proj", hidden, width, "mlp_in", bias=bias),
        linear(f"{module}.down_proj", width, hidden, "mlp_act", bias=bias),
    )


def plain_mlp(hidden: int, width: int, up: str, down: str, *, bias: bool) -> tuple[LinearProfile, ...]:
    """Two matrices with an activation between them."""
    return linear(up, hidden, width, "mlp_in", bias=bias), linear(down, width, hidden, "mlp_act", bias=bias)


def rms(size: int, *names: str, weighs_in_fp32: bool = False) -> tuple[NormProfile, ...]:
    """RMS norms over ``size`` elements, one a name."""
    return tuple(NormProfile(name, "rms", size, weighs_in_fp32=weighs_in_fp32) for name in names)


def layer_norms(size: int, *names: str) -> tuple[NormProfile, ...]:
    """Layer norms with a bias over ``size`` elements, one a name."""
    return tuple(NormProfile(name, "layer", size, bias=True) for name in names)


def group(kinds: Iterable[Kind], build: Callable[[Kind], LayerProfile]) -> tuple[LayerGroup, ...]:
    """Layers of the same kind together, in the order in which the kinds first appear."""
    indices: dict[Kind, list[int]] = {}
    for index, kind in enumerate(kinds):
        indices.setdefault(kind, []).append(index)
    return tuple(LayerGroup(len(where), build(kind), tuple(where)) for kind, where in indices.items())


def windows_from_types(fields: Fields, window: int | None, default: Sequence[bool]) -> tuple[int | None, ...]:
    """Return the sliding window of each layer: from ``layer_types``, or where that is missing, from ``default``.

    ``default`` tells for each layer whether transformers' config class would make it slide.
    """
    types = fields.sequence("layer_types")
    if types is None:
        return tuple(window if slides else None for slides in default)
    if len(types) != len(default):
        raise fields.fail(f"layer_types has {len(types)} entries for {len(default)} layers")
    unknown = sorted({str(kind) for kind in types} - {"sliding_attention", "full_attention"})
    if unknown:
        raise fields.fail(f"layer_types holds {', '.join(unknown)}, which is not mapped")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def rotary_fraction(fields: Fields, fallback: float) -> float:
    """Return the part of each head that rotary positions turn: a field of its own, or inside ``rope_parameters``."""
    nested = fields.sub_or_none("rope_parameters")
    inner = nested.fraction_or("partial_rotary_factor", fallback) if nested else fallback
    return fields.fraction_or("partial_rotary_factor", inner)
