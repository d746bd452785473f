"""Seconds of one optimizer step: arithmetic, memory traffic, kernel launches, communication, offload, optimizer.

The device works while the host launches: the longer of the two decides, and a little more where they are near. What is
written and how many results there are follows from the program of the step. Communication overlaps the work. The
constants are in ``profiles/data/runtime.json`` (``step_time``) with the cases they were fitted on.
"""

from __future__ import annotations

import math
from typing import Final

from ftplan.estimators import sharding, states
from ftplan.estimators.model_flops import device_flops_per_second, forward_flops
from ftplan.estimators.params import layer_targets, total_params, trainable_tensor_count
from ftplan.estimators.tape.build import moments_for
from ftplan.estimators.tape.moments import Batch, Traffic
from ftplan.estimators.workload import Workload
from ftplan.profiles.device_schema import GpuProfile
from ftplan.profiles.model_schema import LayerProfile
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Provenance, StepTime

OVERLAP_ORDER: Final = 4


def step_time(work: Workload) -> StepTime:
    """Time of one optimizer step: all micro-batches of its slowest device, and the update."""
    gpu = min(work.cluster.gpus[: work.world], key=lambda gpu: gpu.flops.get("bf16", gpu.flops.get("fp32", 0.0)))
    traffic = moments_for(work).traffic
    compute = _arithmetic_seconds(work, gpu) + _traffic_seconds(work, traffic, gpu)
    launches = _launch_seconds(work, traffic) * work.cluster.nodes[0].host.launch_factor
    communication, exposed = _communication_seconds(work, gpu)
    micro_steps = work.config.accumulation
    alone = _overlapped(compute, launches)
    hidden = min(communication, alone)
    busy = max(alone, communication) + exposed + _constant("overlap_loss") * hidden
    optimizer = _optimizer_seconds(work, gpu)
    offload = _offload_seconds(work, gpu)
    parts = {"compute": compute, "kernel launches": launches, "communication": communication}
    return StepTime(
        compute_seconds=compute * micro_steps,
        overhead_seconds=launches * micro_steps,
        communication_seconds=(communication + exposed) * micro_steps,
        offload_seconds=offload,
        optimizer_seconds=optimizer,
        total_seconds=busy * micro_steps + optimizer + offload,
        bound_by="offload" if offload > busy * micro_steps else max(parts, key=parts.__getitem__),
        provenance=_provenance(work),
    )


def _provenance(work: Workload) -> Provenance:
    """Data-sheet peaks are assumed to hold, until every card in use was calibrated."""
    calibrated = len(work.cluster.calibrations) == len(work.cluster.devices)
    return Provenance.ANALYTIC if calibrated else Provenance.ASSUMED


def step_flops(work: Workload) -> float:
    """FLOPs of one micro-batch on one rank: 2 per weight and token forward, as many for each gradient.

    Full training adds the weights' gradients, adapters only the inputs'; checkpointing repeats the layers' forward.
    Attention counts half of the score matrix (causal).
    """
    config, forward = work.config, forward_flops(work)
    if config.trains_prompts:
        prompted = sum(group.count * _prompted_flops(work, group.layer) for group in work.model.groups)
        return prompted + 2 * work.tokens * forward.head
    layers = forward.weights + config.seq_len * forward.scores
    backward = 1 if config.trains_adapters else 2
    recompute = 1 if config.gradient_checkpointing else 0
    passes = 1 + backward
    return work.tokens * (layers * (passes + recompute) + forward.head * passes + 3 * forward.adapters)


def _prompted_flops(work: Workload, layer: LayerProfile) -> float:
    """FLOPs of a layer of a model that trains prompts.

    A layer with a prompt computes its queries, values and output a second time, and products with the prompt; of those
    values no gradient is taken. Layers below run backward only for checkpointing, whose inputs require gradients.
    """
    tokens, config, attention = work.tokens, work.config, layer.attention
    recompute = 1 if config.gradient_checkpointing else 0
    scores = tokens * config.seq_len * attention.heads * (attention.head_dim + attention.value_dim)
    own = 2 * tokens * layer.active_weights + scores
    if not layer.prompt_tokens:
        return own * (1 + 2 * recompute)
    query, _, value, out = (each.weight_params for each in layer.linears if each.part == "attention")
    with_prompt = 2 * tokens * layer.prompt_tokens * attention.heads * (attention.head_dim + attention.value_dim)
    forward = own + 2 * tokens * (query + value + out) + with_prompt
    backward = own + 2 * tokens * (query + out) + 2 * with_prompt
    return forward * (1 + recompute) + backward


def _constant(name: str) -> float:
    return runtime_figure("step_time", name).value


def _arithmetic_seconds(work: Workload, gpu: GpuProfile) -> float:
    return step_flops(work) / (device_flops_per_second(work, gpu) * _constant("matmul_efficiency"))


def _overlapped(one: float, other: float) -> float:
    """The longer of two that run beside each other; 19 % more where they are equal (a norm of order 4)."""
    longer = max(one, other)
    return longer * (1 + (min(one, other) / longer) ** OVERLAP_ORDER) ** (1 / OVERLAP_ORDER) if longer else 0.0


def _traffic_seconds(work: Workload, traffic: Traffic, gpu: GpuProfile) -> float:
    """Every byte that is written is read again, more or less often; 4-bit weights are unpacked in each pass."""
    batch = Batch(work.config.micro_batch, work.config.seq_len)
    return batch.bytes(traffic.written) * _constant("written_touches") / gpu.memory_bytes_per_second


def _passes(work: Workload) -> float:
    return 2.0 + (1.0 if work.config.gradient_checkpointing else 0.0)


def _launch_seconds(work: Workload, traffic: Traffic) -> float:
    """Host time of a micro-batch: results of the forward, those that checkpointing recomputes, and the engine's.

    4-bit products bring their own, and so does DeepSpeed's hook on each gradient; the step over all trainable tensors
    is spread over the micro-batches.
    """
    if work.on_cpu:
        return 0.0
    seconds = _constant("launch_fixed") + traffic.forward * _constant("launch_per_forward")
    seconds += traffic.recomputed * _constant("launch_per_recomputed")
    seconds += traffic.backward * _constant("launch_per_backward")
    if work.quantized:
        packed = sum(
            group.count * sum(each.is_linear and each.quantizable for each in group.layer.linears)
            for group in work.model.groups
        )
        seconds += packed * _passes(work) * _constant("launch_per_quantized")
    if work.is_fsdp:
        per_layer = "launch_per_fsdp_layer_trl" if work.stack.name == "trl" else "launch_per_fsdp_layer"
        seconds += _modules(work) * _passes(work) * _constant("launch_per_fsdp_parameter")
        seconds += work.model.layer_count * _passes(work) * _constant(per_layer)
    tensors = trainable_tensor_count(work.model, work.config)
    if work.zero_stage in (1, 2):  # stage 3's gathers have a cost of their own
        seconds += tensors * _constant("launch_per_zero_tensor")
    return seconds + tensors * _constant("launch_per_tensor") / work.config.accumulation


def _communication_seconds(work: Workload, gpu: GpuProfile) -> tuple[float, float]:
    """(overlapped, exposed) seconds of a micro-batch: bytes over the slowest link, and ZeRO-3's gathers by module.

    Without overlap_comm DeepSpeed's collectives are on the stream of the kernels, and nothing is overlapped.
    """
    if work.world == 1:
        return 0.0, 0.0
    overlapped, exposed = _collective_seconds(work, gpu)
    if work.zero_stage and not work.config.zero_overlap:
        return 0.0, overlapped + exposed
    return overlapped, exposed


def _collective_seconds(work: Workload, gpu: GpuProfile) -> tuple[float, float]:
    inside, across = _link_rate(gpu), _network_rate(work)
    everywhere = min(inside, across)
    gradients = work.trainable * work.compute_bytes
    if work.parameter_shards == 1:
        return 2 * _ring(work.world) * gradients / work.config.accumulation / everywhere, 0.0
    whole = total_params(work.model) * work.compute_bytes
    if work.quantized:
        whole = states.whole_weight_bytes(work)
    gathers = 1 if work.config.sharding == "fsdp2-grad-op" else _passes(work)
    moved = _ring(work.shard_ranks) * (gathers * whole + gradients)
    exposed = _modules(work) * _passes(work) * _constant("zero3_per_module") if work.zero_stage == 3 else 0.0
    if work.shard_ranks == work.world:
        return moved / everywhere, exposed
    # HSDP gathers inside a node; across nodes only its share of the gradients is summed.
    copies = work.world // work.shard_ranks
    return moved / inside + 2 * _ring(copies) * gradients / across, exposed


def _ring(ranks: int) -> float:
    """The part of a buffer that a rank sends while it goes round once."""
    return (ranks - 1) / ranks


def _link_rate(gpu: GpuProfile) -> float:
    """Bytes a second that a collective inside a node moves for a rank."""
    link = gpu.link_bytes_per_second
    through_host = link <= gpu.pcie_bytes_per_second and gpu.peer_bytes_per_second is None
    return link * _constant("pcie_link_efficiency" if through_host else "link_efficiency")


def _network_rate(work: Workload) -> float:
    """The same across nodes: as many rings as a node has adapters run side by side, and each crosses it once.

    So that a collective's bus bandwidth is that of all adapters of a node together (nccl-tests, doc/PERFORMANCE.md).
    """
    if len(work.cluster.nodes) == 1:
        return math.inf
    slowest = min(node.host.network_bytes_per_second for node in work.cluster.nodes)
    return slowest * _constant("link_efficiency")


def _modules(work: Workload) -> int:
    """Modules with parameters of their own in all layers."""
    count = 0
    for group in work.model.groups:
        adapters = len(layer_targets(group.layer, work.config)) if work.config.trains_lora else 0
        count += group.count * _layer_modules(group.layer, adapters)
    return count


def _layer_modules(layer: LayerProfile, adapters: int) -> int:
    """Modules with parameters of their own in a layer: each adapter brings two."""
    return len(layer.linears) + len(layer.norms) + 2 * adapters


def _optimizer_seconds(work: Workload, gpu: GpuProfile) -> float:
    """Reads and writes of weights, gradients and states on the device."""
    if sharding.offloads_optimizer(work):
        return 0.0
    trainable = work.sharded(work.trainable, work.optimizer_shards)
    moved = trainable * work.trainable_bytes * 4 + 3 * states.optimizer_states(work)
    return moved * _constant("optimizer_touches") / gpu.memory_bytes_per_second


def _offload_seconds(work: Workload, gpu: GpuProfile) -> float:
    """Gradients and weights over PCIe, and Adam on the host."""
    if not sharding.offloads_optimizer(work):
        return 0.0
    trainable = work.sharded(work.trainable, work.optimizer_shards)
    moved = trainable * (work.gradient_bytes * work.config.accumulation + work.compute_bytes)
    if sharding.offloads_parameters(work):
        moved += int(_passes(work)) * work.config.accumulation * states.weight_bytes(work)
    return moved / gpu.pcie_bytes_per_second + trainable * _host_adam_seconds(work)


def _host_adam_seconds(work: Workload) -> float:
    """AdamW of one element on the host, by the threads of a rank, until memory is the limit; torchrun gives it one.

    DeepSpeed's own takes one pass where torch's takes several.
    """
    node = work.cluster.nodes[0]
    threads = max(1, node.host.cores // work.ranks_per_node) if work.stack.shares_cores else 1
    fused = bool(work.zero_stage) and work.stack.host_adam == "deepspeed"
    at_least = _constant("host_adam_deepspeed" if fused else "host_adam_at_least")
    return max(_constant("host_adam_per_element") / threads, at_least)
