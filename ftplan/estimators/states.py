"""Weights, adapters, gradients and optimizer states: what a rank holds of them, sharded as configured.

P counts all parameters, T the trainable ones, W the ranks that share the sharded state. Each function returns one term
or a size in bytes; shapes and dtypes are in its docstring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ftplan.errors import UnknownNameError
from ftplan.estimators.blocks import unsplit_bytes
from ftplan.estimators.params import total_params
from ftplan.estimators.prompts import GATE, prompt_tensors
from ftplan.estimators.workload import Workload
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Phase, Term

ALWAYS: Final = tuple(Phase)
AFTER_LOAD: Final = tuple(phase for phase in Phase if phase is not Phase.LOAD)
FP32: Final = 4

NF4_BYTES: Final = 0.5 + 4 / 64
"""Packed half byte and one fp32 absmax for each block of 64 (bitsandbytes functional.quantize_4bit)."""

NF4_DOUBLE_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The same with the absmax itself in 8 bits, in blocks of 256 with one fp32 each."""


@dataclass(frozen=True, slots=True)
class OptimizerCost:
    """Bytes per trainable element: ``state`` between steps, ``temporary`` during one.

    ``factored``: Adafactor keeps a row and a column instead of a state of the parameter's shape.
    ``state_is_8bit``: embeddings and small tensors stay in 32 bits. ``paged``: states live in host RAM under pressure.
    ``follows_parameter``: states take the parameter's dtype, so bytes count elements of it. ``moments`` is the number
    of tensors of the parameter's shape.
    """

    state: float
    temporary: float
    moments: int = 2
    follows_parameter: bool = True
    factored: bool = False
    state_is_8bit: bool = False
    paged: bool = False


_ADAM_FOREACH = OptimizerCost(state=2, temporary=1)
_ADAM_FUSED = OptimizerCost(state=2, temporary=0)
_ADAM_8BIT = OptimizerCost(state=2 * (1 + 4 / 256), temporary=0, follows_parameter=False, state_is_8bit=True)
_PAGED_8BIT = OptimizerCost(
    state=2 * (1 + 4 / 256), temporary=0, follows_parameter=False, state_is_8bit=True, paged=True
)
_PAGED_32BIT = OptimizerCost(state=2 * FP32, temporary=0, follows_parameter=False, paged=True)
_LION_8BIT = OptimizerCost(state=1 + 4 / 256, temporary=0, moments=1, follows_parameter=False, state_is_8bit=True)
_SGD = OptimizerCost(state=0, temporary=0, moments=0)
_ADAFACTOR = OptimizerCost(state=0, temporary=0, factored=True)

OPTIMIZERS: Final[dict[str, OptimizerCost]] = {
    "adamw_torch": _ADAM_FOREACH,
    "adamw_torch_fused": _ADAM_FUSED,
    "adamw_bnb_8bit": _ADAM_8BIT,
    "adamw_8bit": _ADAM_8BIT,
    "paged_adamw_8bit": _PAGED_8BIT,
    "paged_adamw_32bit": _PAGED_32BIT,
    "paged_adamw": _PAGED_32BIT,
    "lion_8bit": _LION_8BIT,
    "adafactor": _ADAFACTOR,
    "sgd": _SGD,
}
"""transformers' `optim` names that ftplan models. torch's foreach Adam allocates the square root of the second moment
for all parameters at once (torch/optim/adam.py, _multi_tensor_adam); fused and bitsandbytes kernels work in place."""


def optimizer_cost(name: str) -> OptimizerCost:
    """The cost of a transformers optimizer; raises UnknownNameError with the modelled names."""
    try:
        return OPTIMIZERS[name]
    except KeyError:
        raise UnknownNameError("optimizer", name, OPTIMIZERS, field="optimizer") from None


@lru_cache(maxsize=256)
def quantized_params(model: ModelProfile) -> int:
    """Elements of the linear weights that 4-bit loading packs.

    Every exact nn.Linear but the head (transformers' integrations/bitsandbytes.py); subclasses, fused experts and
    routers stay in 16 bit.
    """
    layers = sum(
        group.count * linear.weight_params
        for group in model.groups
        for linear in group.layer.linears
        if linear.is_linear and linear.quantizable
    )
    towers = model.vision.linears if model.vision else ()
    vision = sum(count * linear.weight_params for count, linear in towers if linear.quantizable)
    return layers + vision


def weight_bytes(work: Workload) -> int:
    """Base weights of one rank: P elements in the loaded dtype, over the ranks if parameters are sharded.

    FSDP2 shards packed weights, but every rank has all their scales, which are no parameters.
    """
    scales = round(quantized_params(work.model) * (_packed_element(work) - 0.5)) if work.quantized else 0
    return work.sharded(whole_weight_bytes(work) - scales, work.parameter_shards) + scales


def _packed_element(work: Workload) -> float:
    return NF4_DOUBLE_BYTES if work.config.double_quantization else NF4_BYTES


def whole_weight_bytes(work: Workload) -> int:
    """All base weights once, as a rank without sharding holds them (fp32 trainables included, adapters not)."""
    total = total_params(work.model)
    if work.trains_all:
        return total * work.trainable_bytes
    if not work.quantized:
        return total * work.frozen_bytes
    packed = quantized_params(work.model)
    return round(packed * _packed_element(work)) + (total - packed) * work.unquantized_bytes


def weights(work: Workload) -> Term:
    """Base weights as they lie on the device through the whole run, in the allocator's blocks."""
    what = (
        "4-bit weights with their scales, and what stays in 16 bit"
        if work.quantized
        else f"{work.config.weights_dtype} weights"
    )
    over = f", sharded over {work.parameter_shards} ranks" if work.parameter_shards > 1 else ""
    size = weight_bytes(work) + _weight_blocks(work)
    return Term("weights", size, ALWAYS, f"base {what}{over}", "catalogue parameter count x dtype, allocator's blocks")


def _weight_blocks(work: Workload) -> int:
    if work.on_cpu or work.zero_stage or work.config.expandable_segments:
        return 0
    element = work.trainable_bytes if work.trains_all else work.unquantized_bytes
    packed = 0.5 if work.quantized else element
    return unsplit_bytes(work.model, element, packed, work.parameter_shards)


def trainable_blocks(work: Workload, element: int, shards: int) -> int:
    """What the allocator's blocks add to one tensor like each weight, such as a gradient or a moment of Adam.

    Adapters are too small for blocks of their own; DeepSpeed keeps flat buffers.
    """
    if not work.trains_all or work.on_cpu or work.zero_stage or work.config.expandable_segments:
        return 0
    return unsplit_bytes(work.model, element, element, shards)


def adapters(work: Workload) -> Term:
    """LoRA's A [r, in] and B [out, r] of every target, or LLaMA-Adapter's prompts [1, length, hidden] and gates [1]."""
    size = work.trainable * work.trainable_bytes
    config = work.config
    if config.trains_prompts:
        reason = f"prompts of {config.adapter_len} tokens in the last {config.adapter_layers} layers"
        source = "peft/tuners/adaption_prompt/layer.py"
    else:
        reason, source = f"rank {config.lora_rank} on {config.lora_targets}", "peft/tuners/lora/layer.py"
    return Term("adapters", work.sharded(size, work.parameter_shards), ALWAYS, reason, source)


def master_weights(work: Workload) -> Term:
    """DeepSpeed's flat fp32 copy of the trainables, 4 T / W (stage_1_and_2.py, stage3.py)."""
    size = FP32 * work.trainable
    return Term(
        "master weights",
        work.sharded(size, work.optimizer_shards),
        AFTER_LOAD,
        "fp32 copy of the trainable parameters that DeepSpeed's optimizer updates",
        "deepspeed 0.19.8 runtime/zero",
    )


def optimizer_states(work: Workload) -> int:
    """Bytes of the optimizer's states of one rank between steps, in the allocator's blocks."""
    cost = optimizer_cost(work.config.optimizer)
    held = work.sharded(whole_optimizer_states(work), work.optimizer_shards)
    if cost.factored or not cost.follows_parameter:
        return held
    element = FP32 if work.zero_stage else work.trainable_bytes
    return held + cost.moments * trainable_blocks(work, element, work.optimizer_shards)


def whole_optimizer_states(work: Workload) -> int:
    """Bytes of the optimizer's states of all ranks together, as they are computed with and as they are saved."""
    cost = optimizer_cost(work.config.optimizer)
    trainable = work.updated
    if cost.factored:
        # DeepSpeed's partition is one flat tensor, which has no rows and columns.
        return FP32 * (trainable if work.zero_stage else _factored_elements(work))
    if cost.state_is_8bit and work.trains_all and not work.zero_stage:
        wide = _embedding_elements(work.model)
        return round((trainable - wide) * cost.state + wide * cost.moments * FP32)
    element = (FP32 if work.zero_stage else work.trainable_bytes) if cost.follows_parameter else 1
    return round(trainable * cost.state * element)


def workspace_block(gpu: GpuProfile, *, with_bias: bool) -> int:
    """Bytes of the workspace that a thread takes at its first product: cuBLAS's, or with a bias cuBLASLt's."""
    if with_bias:
        return int(runtime_figure("workspace_bytes", "with_bias").value)
    hopper = gpu.compute_capability == (9, 0)
    return int(runtime_figure("workspace_bytes", "hopper" if hopper else "other").value)


def factored_bytes(elements: int) -> int:
    """Adafactor's row and column of a square matrix of ``elements``."""
    return int(2 * math.sqrt(elements)) * FP32


def optimizer_temporary(work: Workload) -> int:
    """Bytes the optimizer's step allocates and frees: foreach Adam's root, Adafactor's update of its largest tensor.

    transformers' Adafactor makes a square and a sum, and of 16-bit parameters copies of weight and gradient in fp32.
    ZeRO-1/2 flatten their gradient partition, 2 T / W in bf16, before they convert it, and free it before Adam's root.
    """
    cost = optimizer_cost(work.config.optimizer)
    trainable = work.updated
    if cost.factored and work.zero_stage:
        return 2 * work.sharded(FP32 * trainable, work.optimizer_shards)
    if cost.factored:
        return adafactor_copies(work) * FP32 * largest_trainable(work)
    element = FP32 if work.zero_stage else work.trainable_bytes
    blocks = trainable_blocks(work, element, work.optimizer_shards) if cost.temporary else 0
    flat = work.sharded(trainable * work.compute_bytes, work.optimizer_shards) if work.zero_stage in (1, 2) else 0
    return max(work.sharded(round(trainable * cost.temporary * element), work.optimizer_shards) + blocks, flat)


def adafactor_copies(work: Workload) -> int:
    """fp32 tensors like a parameter that transformers' Adafactor has at once (optimization.py, Adafactor.step)."""
    return 2 if work.trainable_bytes == FP32 else 4


def largest_trainable(work: Workload) -> int:
    """Elements of the largest trainable tensor."""
    if work.config.trains_prompts:
        return max(prompt_tensors(work.config, work.model.hidden_size))
    if work.config.trains_adapters:
        widest = max(max(linear.in_features, linear.out_features) for linear in work.model.layers[0].linears)
        return work.config.lora_rank * widest
    found = [work.model.embedding_params]
    for group in work.model.groups:
        found += [linear.weight_params for linear in group.layer.linears]
        experts = group.layer.mlp.experts
        found += [weight.weight_params * experts.count for weight in experts.weights] if experts else []
    return max(found)


def _embedding_elements(model: ModelProfile) -> int:
    """Elements whose state transformers keeps in 32 bits under an 8-bit optimizer: nn.Embedding weights."""
    return model.embedding_params + model.position_params


def _factored_elements(work: Workload) -> int:
    """Adafactor's second moment: a row and a column for each matrix, and all of a vector."""
    if work.config.trains_prompts:
        return work.config.adapter_layers * (work.config.adapter_len + work.model.hidden_size + GATE)
    if work.config.trains_adapters:
        return 2 * work.updated // max(1, work.config.lora_rank)
    per_layer = sum(
        group.count * sum(linear.in_features + linear.out_features for linear in group.layer.linears)
        for group in work.model.groups
    )
    return per_layer + 2 * (work.model.vocab_size + work.model.hidden_size)
