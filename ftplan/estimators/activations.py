"""What autograd keeps of one decoder layer, and what its backward needs beside that.

Formulas count the tensors that PyTorch's autograd saves in transformers' modelling code, read off traces of the real
modules on fake tensors (torch 2.13, transformers 5.23), in bytes for T tokens of a micro-batch. H is the hidden size,
I the MLP width, Q and K the widths of all query and all key-value heads, e the element of a matrix product's operand.
Tensors below T elements per head (rotary tables, norms' reciprocal roots) are left out except where named.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ftplan.estimators.params import expert_targets, layer_targets
from ftplan.estimators.workload import Workload
from ftplan.profiles.schema import LayerProfile, LinearProfile, NormProfile

FP32: Final = 4

PYTHON_GELU: Final = frozenset({"gelu_new", "gelu_fast", "gelu_accurate", "quick_gelu"})
"""Activations that transformers writes out in Python, so that autograd saves each step of them."""


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Bytes of one layer on one rank.

    ``norms`` … ``weight_copies`` are what autograd saves in the forward; ``checkpoint`` is what is saved instead under
    activation checkpointing; ``transient`` is the most its backward holds beside the saved tensors, and
    ``forward_transient`` its forward.
    """

    norms: int
    attention: int
    mlp: int
    adapters: int
    experts: int
    weight_copies: int
    checkpoint: int
    transient: int
    forward_transient: int

    @property
    def saved(self) -> int:
        """All that autograd saves without checkpointing."""
        return self.norms + self.attention + self.mlp + self.adapters + self.experts + self.weight_copies


def layer_memory(layer: LayerProfile, work: Workload) -> LayerMemory:
    """The memory of one decoder layer for one micro-batch."""
    targets = layer_targets(layer, work.config) if work.config.trains_adapters else ()
    shared, adapters = _linear_inputs(layer, targets, work)
    attention = _attention_saved(layer, work) + shared["attention"]
    mlp = _mlp_saved(layer, work) + shared["mlp"]
    return LayerMemory(
        norms=_norms_saved(layer, work),
        attention=attention,
        mlp=mlp,
        adapters=adapters + _adapter_internals(targets, work),
        experts=_experts_saved(layer, work),
        weight_copies=_weight_copies(layer, work),
        checkpoint=work.tokens * work.model.hidden_size * work.stream_bytes,
        transient=_backward_transient(layer, targets, mlp, work),
        forward_transient=_forward_transient(targets, work),
    )


@dataclass(frozen=True)
class Layers:
    """All decoder layers of one micro-batch: each group's layer with how many of it there are."""

    memories: tuple[tuple[int, LayerMemory], ...]

    @classmethod
    def of(cls, work: Workload) -> Layers:
        """The layers of the workload's model."""
        return cls(tuple((group.count, layer_memory(group.layer, work)) for group in work.model.groups))

    @cached_property
    def saved(self) -> int:
        """All that autograd saves of all layers without checkpointing."""
        return sum(count * memory.saved for count, memory in self.memories)

    @cached_property
    def largest_saved(self) -> int:
        """Saved bytes of the largest layer."""
        return max(memory.saved for _, memory in self.memories)

    @cached_property
    def transient(self) -> int:
        """Most that one layer's backward holds beside the saved tensors."""
        return max(memory.transient for _, memory in self.memories)

    @cached_property
    def forward_transient(self) -> int:
        """Most that one layer's forward holds beside the saved tensors."""
        return max(memory.forward_transient for _, memory in self.memories)

    @cached_property
    def checkpoints(self) -> int:
        """Inputs of all layers: what activation checkpointing keeps."""
        return sum(count * memory.checkpoint for count, memory in self.memories)

    def total(self, what: str) -> int:
        """Sum over all layers of one part of what autograd saves."""
        return sum(count * int(getattr(memory, what)) for count, memory in self.memories)


def _norms_saved(layer: LayerProfile, work: Workload) -> int:
    """Norms keep an fp32 copy of their input (the stream itself where it is fp32), and what a weight gradient needs."""
    return sum(_norm_saved(norm, _norm_width(norm, layer), work) for norm in layer.norms)


def _norm_width(norm: NormProfile, layer: LayerProfile) -> int:
    if norm.over == "query":
        return layer.attention.heads * layer.attention.head_dim
    if norm.over == "key":
        return layer.attention.kv_heads * layer.attention.head_dim
    return norm.size


def _norm_saved(norm: NormProfile, width: int, work: Workload) -> int:
    """RMSNorm in transformers computes in fp32 and multiplies by its weight after; LayerNorm is one fused kernel.

    Liger's norms keep their input alone.
    """
    elements = work.tokens * width
    if work.config.kernels == "liger":
        return elements * work.stream_bytes
    if norm.kind == "layer":
        return elements * (FP32 if work.autocast else work.stream_bytes)
    weight_gradient = elements * work.stream_bytes if work.trains_all else 0
    return elements * FP32 + weight_gradient


def _linear_inputs(
    layer: LayerProfile, targets: tuple[LinearProfile, ...], work: Workload
) -> tuple[dict[str, int], int]:
    """Inputs that linears keep for the gradient of their weight or adapter: (bytes by part, bytes of peft's own).

    A frozen linear without an adapter keeps nothing. Where the input is converted first, every linear keeps its own
    copy; where it is not, linears that read the same tensor share it, and the output projection shares attention's.
    """
    by_part = {"attention": 0, "mlp": 0}
    adapters = 0
    seen: set[str] = set()
    for linear in layer.linears if work.trains_all else targets:
        elements = work.tokens * linear.in_features
        element = _own_copy_bytes(layer, linear, work)
        if work.config.trains_adapters and work.config.lora_dropout:
            adapters += elements + (0 if element else elements * work.compute_bytes)
        if element:
            adapters += elements * element if work.config.trains_adapters else 0
            by_part[_part(linear)] += 0 if work.config.trains_adapters else elements * element
        elif linear.reads not in seen and not _shares_attention_output(linear, work):
            seen.add(linear.reads)
            by_part[_part(linear)] += elements * work.compute_bytes
    return by_part, adapters


def _own_copy_bytes(layer: LayerProfile, linear: LinearProfile, work: Workload) -> int:
    """Element of the copy that this linear makes of its input; 0 if it keeps the tensor as it is.

    peft's dense layer converts its input to the adapter's dtype, and autocast converts that to the operand's
    (peft/tuners/lora/layer.py); its 4-bit layer leaves that to autocast (lora/bnb.py).
    """
    config = work.config
    reads_stream = linear.reads in ("attn_in", "mlp_in", "expert_in")
    fp32_input = reads_stream and (work.stream_bytes == FP32 or (work.autocast and layer.norms[0].kind == "layer"))
    if config.trains_adapters and adapter_element(work) == FP32 and not (work.quantized and work.autocast):
        return work.compute_bytes if work.autocast else FP32
    if config.trains_adapters and work.quantized and config.prepare_kbit and work.autocast:
        return work.compute_bytes
    return work.compute_bytes if fp32_input and work.autocast else 0


def adapter_element(work: Workload) -> int:
    """Element of the adapters inside the forward: FSDP2's policy and DeepSpeed cast them to the compute dtype."""
    return work.compute_bytes if work.is_fsdp or work.zero_stage else work.trainable_bytes


def _part(linear: LinearProfile) -> str:
    return "attention" if linear.part == "attention" else "mlp"


def _shares_attention_output(linear: LinearProfile, work: Workload) -> bool:
    return linear.reads == "attn_out" and work.config.attention != "eager"


def _attention_saved(layer: LayerProfile, work: Workload) -> int:
    """Query and key after the rotary embedding, value, output and the softmax's log-sum (or the scores, if eager)."""
    attention = layer.attention
    tokens, element = work.tokens, work.compute_bytes
    query = attention.heads * attention.head_dim
    value_out = attention.heads * attention.value_dim
    key, value = attention.kv_heads * attention.head_dim, attention.kv_heads * attention.value_dim
    if repeats_kv(layer, work):
        key, value = query, value_out
    elif attention.fused_qkv:
        value = query + key + value
    saved = tokens * element * (query + key + value)
    if eager(layer, work):
        return saved + _score_elements(layer, work) * (FP32 + element)
    if attention.sdpa_math and work.config.attention == "sdpa":
        return saved + tokens * element * value_out + _score_elements(layer, work) * 2 * element
    log_sum = tokens * attention.heads * FP32
    return saved + tokens * element * value_out + log_sum


def eager(layer: LayerProfile, work: Workload) -> bool:
    """Whether the score matrix is materialised: asked for, or the architecture has no other kernel."""
    return work.config.attention == "eager" or work.config.attention not in layer.attention.supports


def masked(layer: LayerProfile, work: Workload) -> bool:
    """Whether sdpa gets a mask: padded batches, or a window shorter than the sequence."""
    window = layer.attention.window
    return work.config.padding or (window is not None and work.config.seq_len > window)


def repeats_kv(layer: LayerProfile, work: Workload) -> bool:
    """Whether keys and values are repeated for every query head: eager, and sdpa with a mask, lack grouped heads."""
    grouped = layer.attention.kind == "gqa" and layer.attention.kv_heads < layer.attention.heads
    uses_mask = work.config.attention == "sdpa" and masked(layer, work)
    return grouped and (uses_mask or eager(layer, work))


def _score_elements(layer: LayerProfile, work: Workload) -> int:
    return work.config.micro_batch * layer.attention.heads * work.config.seq_len**2


def _mlp_saved(layer: LayerProfile, work: Workload) -> int:
    """Gate, up and the activation's output (gated), or up alone; Python-written activations keep each step.

    Liger's fused activation recomputes its output in the backward.
    """
    mlp = layer.mlp
    elements = work.tokens * mlp.intermediate_size
    element = _linear_output_bytes(layer, work)
    if mlp.activation in PYTHON_GELU:
        steps = 3 * FP32 + element if work.autocast else 4 * element
        return elements * (steps + (2 * element if mlp.gated else 0))
    kept = 2 if work.config.kernels == "liger" else 3
    return elements * element * (kept if mlp.gated else 1)


def _experts_saved(layer: LayerProfile, work: Workload) -> int:
    """Routed tokens: gathered input, gate and up, activation, product, and the output before its weighting."""
    experts = layer.mlp.experts
    if experts is None:
        return 0
    routed = work.tokens * experts.per_token
    width = 2 * work.model.hidden_size + 4 * experts.intermediate_size
    return routed * width * work.compute_bytes


def _weight_copies(layer: LayerProfile, work: Workload) -> int:
    """16-bit copies of weights that a product keeps for its backward.

    Autocast makes one of each fp32 weight. peft adapts fused experts by adding the adapters' product to the whole
    expert parameter in every forward (ParamWrapper, peft/tuners/lora/layer.py).
    """
    copies = 0
    if work.casts_weights:
        copies += sum(linear.weight_params for linear in layer.linears)
    if layer.mlp.experts and work.config.trains_adapters and expert_targets(layer, work.config):
        copies += layer.mlp.experts.params
    return copies * work.compute_bytes


def _adapter_internals(targets: tuple[LinearProfile, ...], work: Workload) -> int:
    """Output of each ``lora_A`` [T, r] and, under autocast, the compute-dtype copies of both matrices."""
    rank, element = work.config.lora_rank, work.compute_bytes
    saved = len(targets) * work.tokens * rank * element
    if work.autocast and adapter_element(work) > element:
        saved += sum(rank * (linear.in_features + linear.out_features) * element for linear in targets)
    return saved


def _forward_transient(targets: tuple[LinearProfile, ...], work: Workload) -> int:
    """peft's fp32 copy of the widest input beside its source, and some tensors of the hidden size."""
    return _widest_cast(targets, work) + HIDDEN_BESIDE_CAST * _hidden_bytes(work)


def _backward_transient(layer: LayerProfile, targets: tuple[LinearProfile, ...], mlp_saved: int, work: Workload) -> int:
    """The worst of: peft's fp32 copy, the MLP's gradients, and the gradients of materialised attention scores.

    The MLP's backward holds gradients of its wide tensors (three if gated, two if not; one less where 4-bit weights are
    unpacked), when what the down projection read is freed already, and the gradient or the unpacked form of one weight.
    """
    gradients = _mlp_gradients(layer, targets, work) + (2 + work.quantized) * _hidden_bytes(work)
    if work.quantized or work.trains_all:
        element = work.compute_bytes if work.quantized else work.gradient_bytes
        gradients += max((linear.weight_params for linear in layer.linears), default=0) * element
    return max(gradients, _forward_transient(targets, work), _score_transient(layer, work) - mlp_saved)


HIDDEN_BESIDE_CAST: Final = 5
"""Tensors of the residual stream's size that are alive beside the copy of peft's widest input (read off traces)."""


def _hidden_bytes(work: Workload) -> int:
    return work.tokens * work.model.hidden_size * work.compute_bytes


def _mlp_gradients(layer: LayerProfile, targets: tuple[LinearProfile, ...], work: Workload) -> int:
    keeps_product = work.trains_all or any(linear.reads == "mlp_act" for linear in targets)
    tensors = 2 + layer.mlp.gated - work.quantized - keeps_product
    width = layer.mlp.intermediate_size or max((linear.in_features for linear in layer.linears), default=0)
    return work.tokens * width * max(1, tensors) * _linear_output_bytes(layer, work)


def _linear_output_bytes(layer: LayerProfile, work: Workload) -> int:
    """Element of what a linear returns: 4-bit layers answer in the dtype of their input, fp32 behind some norms."""
    if not work.quantized:
        return work.compute_bytes
    fp32_input = work.stream_bytes == FP32 or (work.autocast and layer.norms[0].kind == "layer")
    return FP32 if fp32_input else work.compute_bytes


def _score_transient(layer: LayerProfile, work: Workload) -> int:
    """Gradients of materialised scores, less the copy freed by then: fp32 if eager, else the operand's dtype."""
    if eager(layer, work):
        return _score_elements(layer, work) * (2 * FP32 - work.compute_bytes)
    if layer.attention.sdpa_math and work.config.attention == "sdpa":
        return _score_elements(layer, work) * 4 * work.compute_bytes
    return 0


def _widest_cast(targets: tuple[LinearProfile, ...], work: Workload) -> int:
    """peft's fp32 copy of the widest input, beside the input itself and, with dropout, the dropped copy."""
    if work.quantized or not work.autocast or adapter_element(work) != FP32 or not targets:
        return 0
    dropped = FP32 if work.config.lora_dropout else 0
    width = max(linear.in_features for linear in targets)
    return work.tokens * width * (FP32 + work.compute_bytes + dropped)
