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
from ftplan.results import CountedFlops, Measured, RunWarning

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

    Attributes:
        epoch: passes over the data so far.
        grad_norm: before clipping; None where the trainer told none, or it was no finite number.
        step_seconds: of one step, without saving and evaluating.
        tokens_per_second: every token put through the model, padding included, over all ranks.
        memory: of every rank.
        mfu: model FLOPs utilisation, 0 to 1; None where the devices' peak or the model's FLOPs are unknown.
        tokens_seen: of all ranks since the first step of the run, attempts that were resumed included; None where the
            checkpoint that was resumed from does not tell.
        samples_seen: rows since the first step of the run.
        elapsed_seconds: since training began in this attempt, saving and evaluating included.
        eta_seconds: until the last step, as the steps of this attempt went, saving and evaluating included.

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
    mfu: float | None = None
    tokens_seen: int | None = None
    samples_seen: int | None = None
    elapsed_seconds: float | None = None
    eta_seconds: float | None = None
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


@dataclass(frozen=True)
class Warned(RunWarning):
    """Memory has left its prediction: more at once, less at the end."""

    event: Literal["warned"] = "warned"


@dataclass(frozen=True)
class FlopsCounted(CountedFlops):
    """The FLOPs of one step were counted, as asked for."""

    event: Literal["flops_counted"] = "flops_counted"


@dataclass(frozen=True, slots=True)
class Profiled:
    """Traces (and on GPUs memory snapshots) of a few steps are complete on disk."""

    first_step: int
    last_step: int
    paths: tuple[str, ...]
    event: Literal["profiled"] = "profiled"


@dataclass(frozen=True, slots=True)
class Recovering:
    """The run failed and goes on by itself, from ``from_step`` (None: from its start).

    ``changed`` maps the fields of the configuration that are different from now on to their old and new values;
    ``predicted`` and ``predicted_ranks`` are what is expected of it.
    """

    kind: FailureKind
    message: str
    from_step: int | None
    changed: Mapping[str, tuple[Value, Value]] = field(default_factory=dict)
    predicted: Measured = field(default_factory=Measured)
    predicted_ranks: tuple[RankMemory, ...] = ()
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


Event = (
    Started | Stepped | Evaluated | Saved | Noted | Warned | FlopsCounted | Profiled | Recovering | Finished | Failed
)


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="event")])


def to_line(event: Event) -> bytes:
    """``event`` as one JSON line."""
    return _adapter().dump_json(event) + b"\n"


def from_line(line: bytes) -> Event:
    """The event that `to_line` wrote; raises pydantic's ValidationError for anything else."""
    return _adapter().validate_json(line)
