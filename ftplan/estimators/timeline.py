"""The terms of one rank's device memory on the phase timeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ftplan.estimators import fetching, sharding, states
from ftplan.estimators.runtime import workspace_bytes
from ftplan.estimators.tape.build import moments_for
from ftplan.estimators.tape.moments import Batch, Moment
from ftplan.estimators.workload import Workload, once
from ftplan.profiles.device_schema import GpuProfile
from ftplan.results import Phase, Provenance, RankEstimate, Term, Timeline

FP32: Final = 4
SHORT_LIVED: Final = frozenset(
    ("recomputed layer", "layer backward", "optimizer temporaries", "gradients", "gathered parameters")
)
KEPT: Final = frozenset(("layer outputs", "norms", "attention", "mlp"))
"""What layers keep for their backward."""
IN_STEP: Final = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD)
MODULES: Final = "transformers' modelling code as a program over sizes (estimators/tape)"

REASONS: Final[Mapping[str, str]] = {
    "input": "token ids, embedding output, rotary tables, masks",
    "layer outputs": "outputs of layers; with checkpointing all that is kept of them",
    "norms": "kept for the backward of norms",
    "attention": "kept for the backward of attention: query, key, value, output, scores where they are materialised",
    "mlp": "kept for the backward of the MLP",
    "weight copies": "copies of weights in the compute dtype that autocast makes",
    "logits and loss": "final norm, head, logits and what the loss makes of them",
    "recomputed layer": "activations of the layer that checkpointing runs again",
    "layer backward": "gradients that flow between operations, unpacked weights",
    "gradients": "gradients of trainable parameters, as far as the backward has come",
    "gradients being reduced": "a layer's gradients on their way to their shards",
    "gathered parameters": "parameters gathered from all ranks",
    "communication": "buffers of all-gathers",
    "scratch": "buffers a kernel holds while it runs",
    "allocator rounding": "blocks larger than what was asked for",
    "evaluation": "the layer that runs without a graph",
}


@dataclass
class _Bill:
    terms: list[Term] = field(default_factory=list)

    def add(self, name: str, size: int, alive: tuple[Phase, ...], reason: str, source: str) -> None:
        assert size >= 0, (name, size)
        if size:
            self.terms.append(Term(name, size, alive, reason, source))


def device_terms(work: Workload, gpu: GpuProfile) -> tuple[Term, ...]:
    """Everything alive in the caching allocator of one rank, by phase."""
    static, gathered, optimizer = _beside_the_step(work)
    bill = _Bill(list(static))
    in_backward = _step(bill, work)
    bill.terms += gathered
    kept = sum(term.bytes for term in bill.terms if term.name in KEPT and Phase.BACKWARD in term.alive)
    reducing = sharding.zero_reducing(work, in_backward, kept)
    reason = "a bucket's copy, or the partition beside gradients that wait for the bucket"
    bill.add("gradients being reduced", reducing, (Phase.BACKWARD,), reason, "deepspeed 0.19.8")
    reason = "the largest gradient on its way to the host, in fp32 twice"
    copies = sharding.zero_host_copies(work, in_backward)
    bill.add("gradients to the host", copies, (Phase.BACKWARD,), reason, "deepspeed 0.19.8")
    bill.terms += optimizer
    workspace = workspace_bytes(gpu, work)
    if workspace.value:
        reason = "cuBLAS workspaces of the forward and the backward thread"
        bill.terms.append(
            Term("workspace", int(workspace.value), states.AFTER_LOAD, reason, workspace.source, Provenance.MEASURED)
        )
    return tuple(bill.terms)


@once
def _beside_the_step(work: Workload) -> tuple[list[Term], list[Term], list[Term]]:
    """What no batch decides: before the step's terms and after them, and with the optimizer."""
    bills = _Bill(), _Bill(), _Bill()
    for bill, fill in zip(bills, (_static, _gathered, _optimizer), strict=True):
        fill(bill, work)
    static, gathered, optimizer = bills
    return static.terms, gathered.terms, optimizer.terms


def _static(bill: _Bill, work: Workload) -> None:
    whole_first = work.quantized and work.is_fsdp
    if not sharding.offloads_parameters(work):
        bill.terms.append(states.weights(work))
        if work.config.trains_adapters:
            bill.terms.append(states.adapters(work))
    elif not whole_first:
        outside = states.whole_weight_bytes(work) - work.model.layer_count * sharding.layer_weight_bytes(work)
        transient = max(sharding.layer_weight_bytes(work), min(outside, sharding.tail_weight_bytes(work)))
        bill.add("weights in transit", transient, (Phase.LOAD,), "one group at a time on its way to the host", MODULES)
    if whole_first:
        size = sharding.whole_before_sharding(work)
        reason = "the rest of the 4-bit model and its adapters, whole on every rank until FSDP2 shards it"
        bill.add(
            "before sharding", size, (Phase.LOAD,), reason, "accelerate 1.15 utils/fsdp_utils.py, model_has_params4bit"
        )
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


def _step(bill: _Bill, work: Workload) -> int:
    """The highest moment of each phase; a part of the same size in several phases is one term.

    Returns the bytes of the backward's.
    """
    moments = moments_for(work)
    batch = Batch(work.config.micro_batch, work.config.seq_len)
    alive: dict[tuple[str, int], list[Phase]] = {}
    for phase in (*IN_STEP, Phase.EVAL) if work.config.evaluates else IN_STEP:
        moment = moments.worst(phase, batch)
        for name, size in _parts(moment, batch, expandable=work.on_cpu or work.config.expandable_segments).items():
            alive.setdefault((name, size), []).append(phase)
    for (name, size), phases in alive.items():
        bill.add(name, size, tuple(phases), REASONS.get(name, name), MODULES)
    return sum(size for (_, size), phases in alive.items() if Phase.BACKWARD in phases)


def evaluation_exceeds(work: Workload, rank: RankEstimate) -> bool:
    """Whether an evaluation, which is not counted, would peak above the step."""
    if work.config.evaluates:
        return False
    batch = Batch(work.config.micro_batch, work.config.seq_len)
    moments = moments_for(work)
    moment = moments.worst(Phase.EVAL, batch).bytes(batch)
    if moment <= moments.worst(Phase.FORWARD, batch).bytes(batch):  # beside which stands all that does in an evaluation
        return False
    return Timeline(rank.terms).bytes_at(Phase.EVAL) + moment > rank.peak_allocated_bytes


def _parts(moment: Moment, batch: Batch, *, expandable: bool) -> dict[str, int]:
    """Whole bytes of each part, which add up to those of the moment."""
    size_of = batch.bytes
    parts = {name: round(size_of(size)) for name, size in moment.parts}
    rest = round(moment.bytes(batch)) - sum(parts.values())
    if rest:
        parts["scratch"] = max(0, parts.get("scratch", 0) + rest)
    if not expandable:
        parts["allocator rounding"] = moment.rounding_bytes(batch)
    return parts


def _gathered(bill: _Bill, work: Workload) -> None:
    """What ZeRO-3 keeps whole, and the reduce buckets of ZeRO-1 and 2."""
    if work.zero_stage == 3:
        live = fetching.live(sharding.zero3_fetching(work, lingers=False))
        reason = "parameters gathered from all ranks: those in use, and those that are used again soon"
        by_size: dict[int, list[Phase]] = {}
        for size, phases in (
            (live.forward, (Phase.FORWARD,)),
            (live.loss, (Phase.LOSS,)),
            (live.backward, (Phase.BACKWARD,)),
            (live.forward, (Phase.EVAL,)),
        ):
            by_size.setdefault(size, []).extend(phases)
        for size, alive in by_size.items():
            bill.add("gathered parameters", size, tuple(alive), reason, "deepspeed 0.19.8")
    # Made at the first gradient of a step; stage 1 gives them back when it has reduced, in the last backward.
    stays = work.zero_stage == 1 and work.config.accumulation > 1
    held: tuple[Phase, ...] = IN_STEP if stays else (Phase.BACKWARD,)
    bill.add("buckets", sharding.zero_buckets(work), held, "DeepSpeed's reduce buckets", "deepspeed 0.19.8")


def _optimizer(bill: _Bill, work: Workload) -> None:
    reason = "of the last rank, whose gradients come first: its partition is there as the backward begins"
    bill.add("gradients", sharding.zero_partition(work), (Phase.BACKWARD,), reason, "deepspeed 0.19.8")
    kept = sharding.accumulated_gradients(work)
    bill.add("accumulated gradients", kept, IN_STEP, "of the micro-batches before", "transformers Trainer")
    at_step = sharding.gradients_at_step(work)
    bill.add("gradients", at_step, (Phase.OPTIMIZER,), "all, as the optimizer reads them", MODULES)
    if not sharding.offloads_optimizer(work):
        temporary = states.optimizer_temporary(work)
        reason = "square roots of all second moments (foreach) or one tensor's update"
        bill.add("optimizer temporaries", temporary, (Phase.OPTIMIZER,), reason, "torch/optim/adam.py")


def short_lived(work: Workload, terms: tuple[Term, ...]) -> dict[str, int]:
    """Bytes of the large tensors that come and go within a step, by kind: what fragments the caching allocator."""
    sums: dict[tuple[str, Phase], int] = {}
    for term in terms:
        if term.name in SHORT_LIVED:
            for phase in term.alive:
                sums[term.name, phase] = sums.get((term.name, phase), 0) + term.bytes

    def of(name: str, phase: Phase) -> int:
        return sums.get((name, phase), 0)

    full_logits = work.tokens * work.model.vocab_size * FP32 if work.config.loss_path == "full" else 0
    recomputed = of("recomputed layer", Phase.BACKWARD)
    flat = 2 * work.trainable if work.zero_stage else 0
    return {
        "logits": full_logits,
        "optimizer_temporaries": of("optimizer temporaries", Phase.OPTIMIZER),
        "gradients": of("gradients", Phase.OPTIMIZER),
        "recomputed_layer": recomputed + of("layer backward", Phase.BACKWARD) if recomputed else 0,
        "gathered": max(of("gathered parameters", Phase.FORWARD), of("gathered parameters", Phase.LOSS)),
        "zero_flat": 0 if work.zero_stage == 3 and sharding.offloads_optimizer(work) else flat,
    }
