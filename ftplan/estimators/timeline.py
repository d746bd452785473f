"""The terms of one rank's device memory on the phase timeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ftplan.estimators import sharding, states
from ftplan.estimators.activations import Layers, eager, masked
from ftplan.estimators.loss import LossMemory, loss_memory
from ftplan.estimators.params import trainable_params
from ftplan.estimators.runtime import workspace_bytes
from ftplan.estimators.workload import Workload
from ftplan.profiles.schema import GpuProfile
from ftplan.results import Phase, Provenance, Term, Timeline

FP32: Final = 4
TRAINING: Final = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
WITH_ACTIVATIONS: Final = (Phase.FORWARD, Phase.LOSS)
MODULES: Final = "transformers' modelling code, what autograd saves (traced, torch 2.13)"


@dataclass
class _Bill:
    terms: list[Term] = field(default_factory=list)

    def add(self, name: str, size: int, alive: tuple[Phase, ...], reason: str, source: str) -> None:
        assert size >= 0, (name, size)
        if size:
            self.terms.append(Term(name, size, alive, reason, source))


def device_terms(work: Workload, layers: Layers, gpu: GpuProfile) -> tuple[Term, ...]:
    """Everything alive in the caching allocator of one rank, by phase."""
    loss = loss_memory(work)
    bill = _Bill()
    _static(bill, work)
    _activations(bill, work, layers)
    _gathered(bill, work)
    _loss(bill, work, layers, loss)
    _backward(bill, work, layers)
    _optimizer(bill, work)
    workspace = workspace_bytes(gpu)
    if workspace.value:
        reason = "cuBLAS workspaces of the forward and the backward thread"
        bill.terms.append(
            Term("workspace", int(workspace.value), TRAINING, reason, workspace.source, Provenance.MEASURED)
        )
    return tuple(bill.terms)


def _static(bill: _Bill, work: Workload) -> None:
    if sharding.offloads_parameters(work):
        outside = states.whole_weight_bytes(work) - work.model.layer_count * sharding.layer_weight_bytes(work)
        transient = max(sharding.layer_weight_bytes(work), min(outside, sharding.tail_weight_bytes(work)))
        bill.add("weights in transit", transient, (Phase.LOAD,), "one group at a time on its way to the host", MODULES)
    else:
        bill.terms.append(states.weights(work))
        if work.config.trains_adapters:
            bill.terms.append(states.adapters(work))
    if work.quantized:
        reason = "the largest matrix in 16 bit while it is packed"
        size = max(linear.weight_params for group in work.model.groups for linear in group.layer.linears)
        bill.add("quantization", size * 2, (Phase.LOAD,), reason, "bitsandbytes functional.quantize_4bit")
    bill.add("buckets", sharding.ddp_buckets(work), states.AFTER_LOAD, "DDP's copy of the gradients", "torch reducer")
    bill.add(
        "zero buffers", sharding.zero_buffers(work), states.AFTER_LOAD, "DeepSpeed's flat partition", "deepspeed 0.19.8"
    )
    if not sharding.offloads_optimizer(work):
        if work.zero_stage:
            bill.terms.append(states.master_weights(work))
        reason = f"states of {work.config.optimizer}, there from the second step on"
        bill.add("optimizer states", states.optimizer_states(work), states.AFTER_LOAD, reason, "the optimizer's source")


def _activations(bill: _Bill, work: Workload, layers: Layers) -> None:
    if work.config.gradient_checkpointing:
        reason = f"inputs of {work.model.layer_count} layers"
        bill.add("checkpoints", layers.checkpoints, WITH_ACTIVATIONS, reason, MODULES)
    else:
        for part, reason in _SAVED_PARTS.items():
            bill.add(f"activations: {part}", layers.total(part), WITH_ACTIVATIONS, reason, MODULES)
    final = work.tokens * work.model.hidden_size * (FP32 + work.compute_bytes)
    bill.add("activations: final norm", final, WITH_ACTIVATIONS, "input of the last norm and of the head", MODULES)
    mask = mask_bytes(work)
    bill.add("attention mask", mask, (*WITH_ACTIVATIONS, Phase.BACKWARD), "mask [B, 1, S, S] of sdpa or eager", MODULES)
    bill.add("layer in progress", layers.forward_transient, (Phase.FORWARD,), "tensors of the layer that runs", MODULES)


_SAVED_PARTS: Final = {
    "norms": "fp32 inputs of the norms",
    "attention": "query, key, value, output and what attention keeps",
    "mlp": "gate, up and activation outputs",
    "adapters": "inputs that peft converts, lora_A outputs, dropout masks",
    "experts": "routed tokens of the experts",
    "weight_copies": "16-bit copies that autocast makes of fp32 weights",
}


def mask_bytes(work: Workload) -> int:
    """Bytes of the 4-D attention mask, one for all layers: padded batches, eager attention, windows under sdpa."""
    config = work.config
    layers = [group.layer for group in work.model.groups]
    if config.attention == "flash_attention_2" and "flash_attention_2" in layers[0].attention.supports:
        return 0
    if not any(masked(layer, work) or eager(layer, work) for layer in layers):
        return 0
    batch = config.micro_batch if config.padding else 1
    return batch * config.seq_len**2 * work.compute_bytes


def _gathered(bill: _Bill, work: Workload) -> None:
    source = "FSDP2's groups, DeepSpeed's stage3_max_live_parameters"
    in_layers = sharding.gathered_in_layers(work)
    reason = "parameters gathered from all ranks"
    bill.add("gathered parameters", in_layers, (Phase.FORWARD, Phase.BACKWARD, Phase.EVAL), reason, source)


def _loss(bill: _Bill, work: Workload, layers: Layers, loss: LossMemory) -> None:
    """Either the loss's forward or the start of its backward, whichever is higher with what is gathered then."""
    forward = sharding.gathered_at_loss(work, backward=False)
    backward = sharding.gathered_at_loss(work, backward=True)
    at_forward = loss.forward + forward >= loss.backward + backward
    size, gathered = (loss.forward, forward) if at_forward else (loss.backward, backward)
    reason = f"{work.config.loss_path} loss over {work.model.vocab_size} columns"
    source = "transformers loss_utils.py, TRL, Liger"
    bill.add("logits and loss", size, (Phase.LOSS,), reason, source)
    bill.add("gathered parameters", gathered, (Phase.LOSS,), "the group that holds the head", "accelerate")
    evaluated = max(loss.evaluation, layers.largest_saved)
    bill.add("evaluation step", evaluated, (Phase.EVAL,), "logits or a layer of the training micro-batch", source)


def _backward(bill: _Bill, work: Workload, layers: Layers) -> None:
    """The worst of three moments: the backward of the last layer, of the first, and of the embedding."""
    moments = (_last_layer(work, layers), _first_layer(work, layers), _embedding(work))
    worst = max(moments, key=lambda moment: sum(size for _, size, _ in moment))
    for name, size, reason in worst:
        bill.add(name, size, (Phase.BACKWARD,), reason, MODULES)
    bill.add(
        "buckets", sharding.zero_buckets(work), (Phase.BACKWARD,), "DeepSpeed's reduce buckets", "deepspeed 0.19.8"
    )


Moment: TypeAlias = tuple[tuple[str, int, str], ...]
"""(name, bytes, reason) of what is alive at one moment of the backward."""


def _last_layer(work: Workload, layers: Layers) -> Moment:
    """Every activation is there, and of the gradients only the head's."""
    checkpointed = work.config.gradient_checkpointing
    all_gradients = sharding.gradients_in_backward(work)
    head = work.model.embedding_params * work.gradient_bytes // work.gradient_shards if work.trains_all else 0
    kept = sharding.accumulated_gradients(work)
    return (
        ("activations", layers.checkpoints if checkpointed else layers.saved, "saved for all layers"),
        ("gradients", max(min(head, all_gradients), kept), "the head's, as the backward begins, or accumulated ones"),
        *_in_progress(work, layers),
    )


def _first_layer(work: Workload, layers: Layers) -> Moment:
    """Every gradient but this layer's and the embedding's is there."""
    saved = 0 if work.config.gradient_checkpointing else layers.largest_saved
    missing = 0
    if work.trains_all:
        embedding = 0 if work.model.tied else work.model.embedding_params
        missing = (embedding + work.model.layers[0].params) * work.gradient_bytes // work.gradient_shards
    gradients = max(sharding.gradients_in_backward(work) - missing, sharding.accumulated_gradients(work), 0)
    return (
        ("activations", saved, "saved for the first layer"),
        ("gradients", gradients, "all but this layer's and the embedding's"),
        *_in_progress(work, layers),
    )


def _in_progress(work: Workload, layers: Layers) -> Moment:
    recomputed = layers.largest_saved if work.config.gradient_checkpointing else 0
    return (
        ("recomputed layer", recomputed, "one layer's activations again"),
        ("layer backward", layers.transient, "gradients and copies of one layer"),
    )


def _embedding(work: Workload) -> Moment:
    """Every gradient is there; a tied embedding's own part exists beside the head's until it is added."""
    gradients = max(sharding.gradients_in_backward(work), sharding.accumulated_gradients(work))
    element = work.compute_bytes if work.is_fsdp else work.gradient_bytes
    tied = work.model.embedding_params * element if work.model.tied and work.trains_all else 0
    return (
        ("gradients", gradients, "all, as the backward ends"),
        ("embedding gradient", tied, "the tied embedding's own part"),
    )


def _optimizer(bill: _Bill, work: Workload) -> None:
    kept = sharding.accumulated_gradients(work)
    bill.add("gradients", kept, WITH_ACTIVATIONS, "accumulated over micro-batches", "transformers Trainer")
    at_step = sharding.gradients_at_step(work)
    bill.add("gradients", at_step, (Phase.OPTIMIZER,), "all, as the optimizer reads them", MODULES)
    if not sharding.offloads_optimizer(work):
        temporary = states.optimizer_temporary(work)
        reason = "square roots of all second moments (foreach) or one tensor's update"
        bill.add("optimizer temporaries", temporary, (Phase.OPTIMIZER,), reason, "torch/optim/adam.py")


def short_lived(work: Workload, timeline: Timeline) -> dict[str, int]:
    """Bytes of the large tensors that come and go within a step, by kind: what fragments the caching allocator."""

    def of(name: str, phase: Phase) -> int:
        return sum(term.bytes for term in timeline.terms if term.name == name and phase in term.alive)

    full_logits = work.tokens * work.model.vocab_size * FP32 if work.config.loss_path == "full" else 0
    recomputed = of("recomputed layer", Phase.BACKWARD)
    flat = 2 * trainable_params(work.model, work.config) if work.zero_stage else 0
    return {
        "logits": full_logits,
        "optimizer_temporaries": of("optimizer temporaries", Phase.OPTIMIZER),
        "gradients": of("gradients", Phase.OPTIMIZER),
        "recomputed_layer": recomputed + of("layer backward", Phase.BACKWARD) if recomputed else 0,
        "gathered": max(of("gathered parameters", Phase.FORWARD), of("gathered parameters", Phase.LOSS)),
        "zero_flat": 0 if work.zero_stage == 3 and sharding.offloads_optimizer(work) else flat,
    }
