"""What a run reports while it runs: one frozen type an event, one JSON line each in ``metrics.jsonl``.

The worker writes them (`to_line`), the parent reads them (`from_line`). Bytes are integers, times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ftplan.errors import FailureKind

Value = str | bool | int | float | None


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Peak memory of one rank so far; None where it cannot be measured.

    ``process_bytes`` is the device's whole use on a GPU, and the resident memory on a CPU. ``host_bytes`` is resident
    memory of the process, on any device.
    """

    rank: int
    allocated_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None
    host_bytes: int | None


@dataclass(frozen=True, slots=True)
class Started:
    """Training begins (or goes on, when ``resumed_from_step`` is not None)."""

    total_steps: int
    world_size: int
    global_batch: int
    samples: int
    total_params: int
    trainable_params: int
    pids: tuple[int, ...]
    resumed_from_step: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    event: Literal["started"] = "started"


@dataclass(frozen=True, slots=True)
class Stepped:
    """An optimizer step is logged: mean loss and time a step since the last of these, and the peaks so far.

    ``tokens_per_second`` counts every token put through the model, padding included, over all ranks.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    step_seconds: float
    tokens_per_second: float
    memory: tuple[RankMemory, ...]
    event: Literal["stepped"] = "stepped"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The held-out rows were evaluated."""

    step: int
    loss: float
    event: Literal["evaluated"] = "evaluated"


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is complete on disk."""

    step: int
    path: str
    seconds: float
    event: Literal["saved"] = "saved"


@dataclass(frozen=True, slots=True)
class Noted:
    """Something a user should know, that stops nothing."""

    message: str
    event: Literal["noted"] = "noted"


@dataclass(frozen=True, slots=True)
class Recovering:
    """The run failed and goes on by itself, from ``from_step`` (None: from its start).

    ``changed`` maps the fields of the configuration that are different from now on to their old and new values.
    """

    kind: FailureKind
    message: str
    from_step: int | None
    changed: Mapping[str, tuple[Value, Value]] = field(default_factory=dict)
    event: Literal["recovering"] = "recovering"


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker ends by itself: all steps done, or stopped on request after saving."""

    step: int
    status: Literal["finished", "interrupted"]
    memory: tuple[RankMemory, ...]
    event: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank fails; ``input``: by what the user gave it."""

    rank: int
    kind: FailureKind | Literal["input"]
    message: str
    hint: str = ""
    event: Literal["failed"] = "failed"


Event = Started | Stepped | Evaluated | Saved | Noted | Recovering | Finished | Failed


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="event")])


def to_line(event: Event) -> bytes:
    """``event`` as one JSON line."""
    return _adapter().dump_json(event) + b"\n"


def from_line(line: bytes) -> Event:
    """The event that `to_line` wrote; raises pydantic's ValidationError for anything else."""
    return _adapter().validate_json(line)
