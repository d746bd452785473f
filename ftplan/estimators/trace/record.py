"""What a trace leaves behind: events with the layer each belongs to, allocations with their origin, and costs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ftplan.estimators.trace.stream import Event, Kind
from ftplan.results import Phase

Label: TypeAlias = int
NO_LAYER: Final = -1
"""The label of what belongs to no decoder layer: embedding, head, loss, input."""


@dataclass(slots=True)
class Allocation:
    """One allocation: bytes, the operation and module that made it, and what it is (``category``, if known)."""

    size: int
    operation: str
    module: str
    phase: Phase
    layer: int
    stream: int
    category: str = ""


@dataclass(slots=True)
class Cost:
    """Work: floating point operations of matrix products by dtype, bytes moved, kernels started, bytes sent."""

    matrix_flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bytes_moved: float = 0.0
    kernels: float = 0.0
    sent_bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: Cost, times: float = 1.0) -> None:
        """Add ``other``, ``times`` over."""
        for dtype, flops in other.matrix_flops.items():
            self.matrix_flops[dtype] += flops * times
        self.bytes_moved += other.bytes_moved * times
        self.kernels += other.kernels * times
        for collective, sent in other.sent_bytes.items():
            self.sent_bytes[collective] += sent * times


@dataclass(slots=True)
class Recording:
    """The events of one memory in order; ``allocations`` by key.

    ``labels[i]`` is the layer of ``events[i]``; ``loose[i]`` says that it happened outside the layers, and that its
    label is the storage's.
    """

    events: list[Event] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    loose: list[bool] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    costs: dict[tuple[Label, Phase], Cost] = field(default_factory=lambda: defaultdict(Cost))

    def held_bytes(self, label: Label) -> int:
        """Bytes of the layer ``label`` that are never released."""
        made: dict[int, int] = {}
        for event, own in zip(self.events, self.labels, strict=True):
            if event.kind is Kind.ALLOC and own == label:
                made[event.key] = event.size
            elif event.kind is Kind.FREE:
                made.pop(event.key, None)
        return sum(made.values())

    def count(self, label: Label, phase: Phase, cost: Cost) -> None:
        """Add the cost of one operation."""
        self.costs[label, phase].add(cost)
