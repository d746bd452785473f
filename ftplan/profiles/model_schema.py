"""What profiles hold of models, as frozen values.

Dataclasses, not pydantic models: estimators read them in a hot loop. Shapes are those of the Hugging Face modules, so
that a name in `LinearProfile.name` is the one peft matches ``target_modules`` against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

Part = Literal["embedding", "attention", "mlp", "norms", "head", "vision"]
PARTS: Final[tuple[Part, ...]] = ("embedding", "attention", "mlp", "norms", "head", "vision")

Reads = Literal["attn_in", "attn_out", "q_latent", "kv_latent", "mlp_in", "mlp_act", "expert_in", "expert_act"]
"""Which tensor a linear layer reads. Layers that read the same tensor share what autograd saves of it:
``attn_in`` the normed input of attention, ``attn_out`` the heads' output before the projection, ``q_latent`` and
``kv_latent`` MLA's compressed tensors, ``mlp_in`` the normed input of the MLP, ``mlp_act`` what the down projection
reads, ``expert_*`` the same inside one routed expert."""


@dataclass(frozen=True)
class LinearProfile:
    """One weight matrix ``[out_features, in_features]``, with a bias ``[out_features]`` if ``bias``.

    ``is_linear`` is False where the module is no ``nn.Linear`` (GPT-2's Conv1D counts as one for peft, fused expert
    parameters do not): peft's ``all-linear`` and 4-bit quantization pass those by.

    ``module`` is the path of the module that holds it inside its layer (``self_attn``, ``mlp.shared_experts``).
    ``shadowed``: its name is one that peft redirects to the fused experts of the model, so that LoRA never reaches it.
    ``quantizable`` is False where the module is a subclass of ``nn.Linear`` (Falcon's): transformers' bitsandbytes
    integration leaves it as it is, although peft adapts it.
    """

    name: str
    part: Part
    in_features: int
    out_features: int
    bias: bool
    reads: Reads
    is_linear: bool = True
    module: str = ""
    shadowed: bool = False
    quantizable: bool = True

    @property
    def path(self) -> str:
        """Where the module sits inside its layer, as peft compares suffixes: ``self_attn.q_proj``."""
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def weight_params(self) -> int:
        """Elements of the weight."""
        return self.in_features * self.out_features

    @property
    def params(self) -> int:
        """Elements of weight and bias."""
        return self.weight_params + (self.out_features if self.bias else 0)


@dataclass(frozen=True)
class NormProfile:
    """One normalisation over ``size`` elements. ``kind`` rms has a weight; layer also a bias if ``bias``.

    ``over`` says what it runs on: the hidden state, each query or key head (qk norms), or an MLA latent.
    ``weighs_in_fp32``: an RMS norm multiplies by its weight before it converts back (Gemma, OLMo 2, gpt-oss).
    """

    name: str
    kind: Literal["rms", "layer"]
    size: int
    bias: bool = False
    over: Literal["hidden", "query", "key", "q_latent", "kv_latent"] = "hidden"
    weighs_in_fp32: bool = False

    @property
    def params(self) -> int:
        """Elements of weight and bias."""
        return self.size * (2 if self.bias else 1)


@dataclass(frozen=True)
class AttentionProfile:
    """Shape of one attention: ``heads`` queries and ``kv_heads`` keys and values.

    ``head_dim`` is the width of a query or key head (MLA: nope plus rope part), ``value_dim`` that of a value head.
    ``positions`` is how they enter. ``window`` is the sliding window in tokens, None for full attention.
    ``sdpa_math``: heads do not match for sdpa's fused kernels, so that it materialises the scores.
    ``extra_params`` counts parameters outside linears and norms (gpt-oss's sinks).
    """

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    positions: Literal["rope", "alibi", "learned"] = "rope"
    rotary_dim: int = 0
    window: int | None = None
    softcap: bool = False
    sinks: bool = False
    fused_qkv: bool = False
    sdpa_math: bool = False
    extra_params: int = 0
    supports: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class ExpertsProfile:
    """Routed experts of one layer: ``count`` of width ``intermediate_size``, ``per_token`` of them used for a token.

    ``params`` counts all routed experts with biases; ``router_params`` the router with its bias or correction bias;
    ``fused`` says that transformers keeps them as two 3-D parameters (no ``nn.Linear``).
    ``weights`` are those parameters, each with the shape of one expert's part, and ``router`` the router's weight;
    ``peft_names`` maps a name users give peft (``w1``, ``gate_proj``, ``gate``) to the one of these that peft then
    adapts, and is empty where peft does not translate names.
    """

    count: int
    per_token: int
    intermediate_size: int
    params: int
    router_params: int
    fused: bool = True
    weights: tuple[LinearProfile, ...] = ()
    router: LinearProfile | None = None
    peft_names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class MlpProfile:
    """The dense (or shared-expert) MLP of a layer, and its routed experts if it has any.

    ``gated``: down(act(gate(x)) * up(x)); otherwise down(act(up(x))). ``fused_gate_up``: one matrix gives both.
    ``intermediate_size`` is 0 where the layer has routed experts only.
    """

    gated: bool
    activation: str
    intermediate_size: int
    fused_gate_up: bool = False
    experts: ExpertsProfile | None = None


@dataclass(frozen=True)
class LayerProfile:
    """One decoder layer.

    ``linears`` holds every weight matrix of attention and dense MLP once (routed experts are in ``mlp.experts``).
    ``parallel``: attention and MLP read the same input and are added together (Falcon, GPT-J, NeoX, Phi).
    ``prompt_tokens``: length of a LLaMA-Adapter's prompt around its attention, 0 in the model as it was published; the
    prompt is an adapter, and no parameter of the layer.
    """

    attention: AttentionProfile
    mlp: MlpProfile
    linears: tuple[LinearProfile, ...]
    norms: tuple[NormProfile, ...]
    parallel: bool = False
    prompt_tokens: int = 0

    @cached_property
    def params_by_part(self) -> dict[Part, int]:
        """Elements of attention, mlp and norms; qk and latent norms count as norms."""
        experts = self.mlp.experts
        counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        for linear in self.linears:
            counts[linear.part] += linear.params
        counts["attention"] += self.attention.extra_params
        counts["mlp"] += experts.params + experts.router_params if experts else 0
        counts["norms"] += sum(norm.params for norm in self.norms)
        return counts

    @cached_property
    def params(self) -> int:
        """Elements of the layer."""
        return sum(self.params_by_part.values())

    @cached_property
    def active_weights(self) -> int:
        """Weights that a token passes: all dense ones, and those of its experts."""
        dense = sum(linear.weight_params for linear in self.linears)
        experts = self.mlp.experts
        return dense + (experts.params * experts.per_token // experts.count if experts else 0)

    def __hash__(self) -> int:
        # The generated hash walks every field; estimators use profiles as cache keys in a hot loop.
        return hash((self.params, len(self.linears)))


@dataclass(frozen=True)
class LayerGroup:
    """``count`` equal layers. Layers that alternate (sliding, full) are two groups.

    ``indices`` says which layers of the model these are; empty for those that follow the group before.
    """

    count: int
    layer: LayerProfile
    indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisionProfile:
    """A vision tower with its projector: counted and loaded, but not run for text-only samples.

    ``params`` counts all its elements; ``linears`` lists its ``nn.Linear`` kinds with how many of each there are, for
    peft's ``all-linear`` and for quantization, which reach into it.
    """

    params: int
    linears: tuple[tuple[int, LinearProfile], ...] = ()


@dataclass(frozen=True)
class DropoutProfile:
    """Probabilities of dropout in the model itself: of attention's weights, of what blocks add, of the embedding."""

    attention: float = 0.0
    hidden: float = 0.0
    embedding: float = 0.0


@dataclass(frozen=True)
class ModelProfile:
    """One architecture with its sizes.

    ``vocab_size`` is the number of rows of the token embedding and of columns of the logits.
    ``position_params`` counts learned position (and token-type) embeddings.
    ``tied``: the head shares the embedding's weight; ``head_bias`` adds a bias of ``vocab_size``.
    ``logits_softcap``: the logits pass through a tanh (Gemma 2). ``embedding_scale``: embeddings are multiplied by a
    constant. ``outer_norms`` are the norms outside layers (final, BLOOM's embedding norm).
    ``checkpoint_dtype`` is that of the published weights, which ``dtype="auto"`` keeps.
    """

    id: str
    model_type: str
    architecture: str
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
    checkpoint_dtype: str = "bf16"
    vision: VisionProfile | None = None
    dropout: DropoutProfile = DropoutProfile()
    source: str = ""
    config: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def layer_count(self) -> int:
        """Number of decoder layers."""
        return sum(group.count for group in self.groups)

    @cached_property
    def layers(self) -> tuple[LayerProfile, ...]:
        """Every decoder layer, group after group."""
        return tuple(self._each_layer())

    def _each_layer(self) -> Iterator[LayerProfile]:
        for group in self.groups:
            for _ in range(group.count):
                yield group.layer

    @cached_property
    def has_windows(self) -> bool:
        """Whether some layer attends to a window."""
        return any(group.layer.attention.window for group in self.groups)

    @cached_property
    def has_biases(self) -> bool:
        """Whether some projection of a layer adds a bias."""
        return any(linear.bias for group in self.groups for linear in group.layer.linears)

    @cached_property
    def active_weights(self) -> int:
        """Weights of all layers that a token passes: all dense ones, and those of its experts."""
        return sum(group.count * group.layer.active_weights for group in self.groups)

    @cached_property
    def score_width(self) -> int:
        """Elements of query and value heads over all layers, by which scores are multiplied."""
        return sum(
            group.count
            * group.layer.attention.heads
            * (group.layer.attention.head_dim + group.layer.attention.value_dim)
            for group in self.groups
        )

    @cached_property
    def embedding_params(self) -> int:
        """Elements of the token embedding."""
        return self.vocab_size * self.hidden_size

    @cached_property
    def params_by_part(self) -> dict[Part, int]:
        """Elements by part; a tied head counts in the embedding only, learned positions in the embedding."""
        counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        for group in self.groups:
            for part, params in group.layer.params_by_part.items():
                counts[part] += group.count * params
        counts["embedding"] += self.embedding_params + self.position_params
        counts["norms"] += sum(norm.params for norm in self.outer_norms)
        counts["head"] += (0 if self.tied else self.embedding_params) + (self.vocab_size if self.head_bias else 0)
        counts["vision"] += self.vision.params if self.vision else 0
        return counts

    @cached_property
    def total_params(self) -> int:
        """Unique elements, tied weights once, no buffers: as the catalogue counts."""
        return sum(self.params_by_part.values())

    def __hash__(self) -> int:
        # As for LayerProfile: cheap, because it is a cache key.
        return hash((self.total_params, self.hidden_size, self.vocab_size))
