"""What a trace says: peaks by phase and what is alive there, the allocator's figures, work. Without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ftplan.estimators.trace.addresses import usual_order
from ftplan.estimators.trace.record import NO_LAYER, Allocation, Recording
from ftplan.estimators.trace.replay import Replay, needed, replay
from ftplan.estimators.trace.stream import Kind
from ftplan.results import Phase, Provenance, Term
from ftplan.spec import RunConfig

PHASES: Final = tuple(Phase)
SOURCE: Final = "trace of the libraries' own code on fake tensors"
ROUNDING: Final = "allocator rounding"
BLOCK: Final = 512
_LAYER_PART: Final = re.compile(r"\.\d+\.(?P<part>\w+)")
_LAYER: Final = re.compile(r"\.\d+$")
RESIDUAL: Final = "activations: residual stream"

_REASONS: Final[Mapping[str, str]] = {
    "weights": "base model parameters and buffers",
    "adapters": "LoRA matrices",
    "gradients": "gradients of trainable parameters",
    "optimizer states": "states of the optimizer, there from the second step on",
    "master weights": "DeepSpeed's fp32 copy of what trains",
    "pinned": "memory of the host that the device copies from",
    "workspace": "cuBLAS workspaces of the forward and the backward thread",
    "buckets": "DDP's copy of the gradients",
    "gathered parameters": "parameters gathered from all ranks",
    "communication": "buffers of collectives, on streams of their own",
    "logits and loss": "final norm, head, logits and what the loss makes of them",
    RESIDUAL: "outputs of layers; with checkpointing all that is kept of them",
    "input": "token ids, embedding output, rotary tables, masks",
    "recomputation": "activations of the layer that checkpointing runs again",
    "activation gradients": "gradients that flow between operations",
    "optimizer temporaries": "what clipping and the step make in passing",
    "scratch": "buffers a kernel holds while it runs",
    ROUNDING: "blocks larger than what was asked for",
}


@dataclass(frozen=True)
class PhasePeak:
    """The highest moment of a phase: bytes allocated and reserved then, and bytes by what they are."""

    allocated_bytes: int
    reserved_bytes: int
    parts: Mapping[str, int]


@dataclass(frozen=True)
class Work:
    """Work of one optimizer step in a phase: matrix FLOPs by dtype, bytes moved, kernels, bytes sent by collective."""

    matrix_flops: Mapping[str, float]
    bytes_moved: float
    kernels: float
    sent_bytes: Mapping[str, float]


@dataclass(frozen=True)
class Digest:
    """One rank's trace. ``needed_bytes`` is the smallest cap on what the allocator may reserve that it survives."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    needed_bytes: int
    peak_phase: Phase
    peak_operation: str
    phases: Mapping[Phase, PhasePeak]
    host_phases: Mapping[Phase, PhasePeak]
    work: Mapping[Phase, Work]
    total_params: int
    trainable_params: int
    traced_layers: int
    layers: int
    note: str
    events: int

    def terms(self) -> tuple[Term, ...]:
        """What is alive at the peak of each phase; a part of the same size in several phases is one term."""
        return _terms(self.phases)

    def host_terms(self) -> tuple[Term, ...]:
        """The same for the host."""
        return _terms(self.host_phases)


def _terms(phases: Mapping[Phase, PhasePeak]) -> tuple[Term, ...]:
    alive: dict[tuple[str, int], list[Phase]] = {}
    for phase, peak in phases.items():
        for name, size in peak.parts.items():
            if size:
                alive.setdefault((name, size), []).append(phase)
    return tuple(
        Term(name, size, tuple(where), _reason(name), SOURCE, Provenance.TRACED)
        for (name, size), where in alive.items()
    )


def _reason(name: str) -> str:
    return _REASONS.get(name, f"kept for the backward in {name.removeprefix('activations: ')}")


@dataclass(frozen=True)
class Shape:
    """What the digest needs beside the streams: parameters, and how many layers were traced of how many."""

    total_params: int
    trainable_params: int
    traced_layers: int
    layers: int
    note: str = ""


def digest(
    device: Recording, host: Recording, shape: Shape, config: RunConfig, *, repeated: Mapping[Phase, float]
) -> Digest:
    """Replay the streams and say what they hold when; ``repeated``: how often a step does what was recorded once."""
    expandable_segments = config.expandable_segments
    played = replay(device.events, expandable_segments=expandable_segments, addresses=usual_order(config))
    phases = _phase_peaks(device, played)
    peak_phase = max(phases, key=lambda phase: phases[phase].allocated_bytes)
    return Digest(
        peak_allocated_bytes=played.peak_allocated_bytes,
        peak_reserved_bytes=played.peak_reserved_bytes,
        needed_bytes=needed(device.events, expandable_segments=expandable_segments),
        peak_phase=peak_phase,
        peak_operation=_operation(device, played.peak_index),
        phases=phases,
        host_phases=_phase_peaks(host, None),
        work=_work(device, repeated),
        total_params=shape.total_params,
        trainable_params=shape.trainable_params,
        traced_layers=shape.traced_layers,
        layers=shape.layers,
        note=shape.note,
        events=len(device.events),
    )


def _operation(recording: Recording, index: int) -> str:
    event = recording.events[index]
    if event.kind is not Kind.ALLOC:
        return ""
    made = recording.allocations[event.key]
    operation = made.operation.removeprefix("aten::").lstrip("_")
    return f"{operation} in {_kind(made.module)}" if made.module else operation


def _kind(module: str) -> str:
    """A module's path without the numbers of layers and the names peft adds."""
    return re.sub(r"\.\d+", "", module.replace("base_model.model.", "", 1)) or "the model"


def _phase_peaks(recording: Recording, played: Replay | None) -> dict[Phase, PhasePeak]:
    """The moment of each phase at which most is allocated, and what is alive at it."""
    moments = _moments(recording)
    wanted: dict[int, list[Phase]] = {}
    for phase, index in moments.items():
        wanted.setdefault(index, []).append(phase)
    found: dict[Phase, PhasePeak] = {}
    live: dict[int, int] = {}
    for index, event in enumerate(recording.events):
        if event.kind is Kind.ALLOC:
            live[event.key] = _block(event.size)
        elif event.kind is Kind.FREE:
            live.pop(event.key, None)
        for phase in wanted.get(index, ()):
            found[phase] = _peak(recording, live, phase, played)
    return {phase: found[phase] for phase in PHASES if phase in found}


def _moments(recording: Recording) -> dict[Phase, int]:
    current, phase = 0, Phase.LOAD
    highest: dict[Phase, tuple[int, int]] = {}
    live: dict[int, int] = {}
    for index, event in enumerate(recording.events):
        if event.kind is Kind.ALLOC:
            live[event.key] = _block(event.size)
            current += live[event.key]
        elif event.kind is Kind.FREE:
            current -= live.pop(event.key, 0)
        elif event.kind is Kind.MARK:
            phase = PHASES[event.key]
        if phase not in highest or current > highest[phase][0]:
            highest[phase] = (current, index)
    return {phase: index for phase, (_, index) in highest.items()}


def _peak(recording: Recording, live: Mapping[int, int], phase: Phase, played: Replay | None) -> PhasePeak:
    parts: dict[str, int] = {}
    for key, size in live.items():
        name = part_of(recording.allocations[key], phase)
        parts[name] = parts.get(name, 0) + size
    total = sum(parts.values())
    allocated, reserved = total, total
    if played is not None:
        allocated, reserved = played.phases.get(PHASES.index(phase), (total, total))
        allocated = max(allocated, total)
        if allocated > total:
            parts[ROUNDING] = allocated - total
    return PhasePeak(allocated, reserved, dict(sorted(parts.items(), key=lambda part: -part[1])))


def _block(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def part_of(made: Allocation, now: Phase) -> str:
    """What an allocation is, at a moment of phase ``now``."""
    if made.category or made.stream:
        return made.category or "communication"
    if made.phase in _BY_PHASE:
        return _BY_PHASE[made.phase]
    if made.phase is Phase.BACKWARD:
        return "recomputation" if made.module else "activation gradients"
    if made.phase is Phase.LOSS:
        return "logits and loss"
    if _LAYER.search(made.module):
        return RESIDUAL
    in_layer = _LAYER_PART.search(made.module)
    if in_layer:
        return f"activations: {in_layer['part']}"
    return "logits and loss" if now is Phase.EVAL and made.layer != NO_LAYER else "input"


_BY_PHASE: Final[Mapping[Phase, str]] = {
    Phase.LOAD: "weights",
    Phase.OPTIMIZER: "optimizer temporaries",
    Phase.SAVE: "gathered parameters",
}


def _work(recording: Recording, repeated: Mapping[Phase, float]) -> dict[Phase, Work]:
    """The work of one step by phase; of loading, evaluation and saving as often as they were recorded."""
    totals: dict[Phase, Work] = {}
    for (_, phase), cost in recording.costs.items():
        share = repeated.get(phase, 1.0)
        before = totals.get(phase, Work({}, 0.0, 0.0, {}))
        totals[phase] = Work(
            _added(before.matrix_flops, cost.matrix_flops, share),
            before.bytes_moved + cost.bytes_moved * share,
            before.kernels + cost.kernels * share,
            _added(before.sent_bytes, cost.sent_bytes, share),
        )
    return totals


def _added(one: Mapping[str, float], other: Mapping[str, float], share: float) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) * share for name in {*one, *other}}
