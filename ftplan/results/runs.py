"""What a run cost and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ftplan.results.estimates import Basis
from ftplan.spec import RunConfig


@dataclass(frozen=True)
class Measured:
    """What a run costs, predicted or measured. A figure that is not known is None, never 0.

    ``peak_process_bytes`` is a device's whole use on a GPU and the largest rank's resident memory on a CPU. ``mfu`` is
    model FLOPs utilisation, 0 to 1, as `ftplan.estimators.model_flops` counts it.
    """

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_process_bytes: int | None = None
    host_bytes: int | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None


@dataclass(frozen=True)
class RunWarning:
    """A rank's memory left its prediction at ``step``: one of its figures (`Measured` says what they are)."""

    kind: Literal["memory"]
    rank: int
    figure: Literal["allocated", "process"]
    step: int
    measured_bytes: int
    predicted_bytes: int
    message: str


@dataclass(frozen=True)
class CountedFlops:
    """FLOPs of one optimizer step of all ranks as torch counted them, by operation, beside those of the model.

    Counted are matrix products and attention (whole score matrices), and what checkpointing recomputes too; kernels
    that torch has no formula for are not. ``model`` is None where the model has no profile.
    """

    step: int
    tokens: int
    counted: int
    by_operation: Mapping[str, int]
    model: float | None


@dataclass(frozen=True)
class Recovery:
    """A failure that a run survived by itself.

    ``kind`` and ``message`` say what it died of; it went on from ``from_step`` (None: from its start), with the fields
    ``changed`` in its configuration, each from an old to a new value.
    """

    kind: str
    message: str
    from_step: int | None
    changed: Mapping[str, tuple[str | bool | int | float | None, str | bool | int | float | None]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class RunRecord:
    """The end of a run: what was predicted beside what was measured.

    ``warnings`` are those of all attempts. ``profiles`` are paths of traces and memory snapshots that were asked for.
    """

    run_id: str
    status: str
    config: RunConfig
    inventory: str
    global_batch: int
    steps: int
    first_loss: float | None
    last_loss: float | None
    predicted: Measured
    measured: Measured
    wall_seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    resumed_from_step: int | None = None
    basis: Basis = field(default_factory=Basis)
    recoveries: tuple[Recovery, ...] = ()
    warnings: tuple[RunWarning, ...] = ()
    flops: CountedFlops | None = None
    profiles: tuple[str, ...] = ()
