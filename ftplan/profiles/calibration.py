"""What was measured on the user's own devices: by ``ftplan calibrate``, and by the runs that finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal


@dataclass(frozen=True)
class DeviceFigures:
    """What was measured on a device; None for what could not be.

    Attributes:
        context_bytes: what a process that trains holds of the device before its first tensor; resident memory of one
            that has the training libraries, on a CPU.
        matrix_flops_per_second: of the fastest square product in ``matrix_dtype``; by all cores of a CPU.
        memory_bytes_per_second: of a large copy, bytes read and bytes written; by all cores of a CPU.
        to_device_bytes_per_second, from_device_bytes_per_second: between pinned host memory and the device.
        launch_seconds: host time of a tiny operation, forward and backward.
        nccl_bytes: what a process group adds to a process outside the caching allocator.
        link_bytes_per_second: bus bandwidth of a large all-reduce over ``ranks`` devices, 2 (n - 1) / n times its size
            over its time.
        ranks: devices that the link was measured over.

    """

    context_bytes: int | None = None
    matrix_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    matrix_flops_per_second: float | None = None
    memory_bytes_per_second: float | None = None
    to_device_bytes_per_second: float | None = None
    from_device_bytes_per_second: float | None = None
    launch_seconds: float | None = None
    nccl_bytes: int | None = None
    link_bytes_per_second: float | None = None
    ranks: int | None = None

    def __post_init__(self) -> None:
        rates = (
            self.matrix_flops_per_second,
            self.memory_bytes_per_second,
            self.to_device_bytes_per_second,
            self.from_device_bytes_per_second,
            self.launch_seconds,
            self.link_bytes_per_second,
        )
        if not all(rate is None or 0 < rate < inf for rate in rates):
            raise ValueError("a rate or a time is not positive")


@dataclass(frozen=True)
class Calibration:
    """Figures of the ``device`` that the catalogue calls so, with a driver and a torch; ``measured_at`` is ISO 8601.

    ``failures`` maps what could not be measured to the reason.
    """

    device: str
    driver: str
    torch: str
    measured_at: str
    figures: DeviceFigures
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later calibration of the same takes the place of."""
        return self.device, self.driver, self.torch


@dataclass(frozen=True)
class RunFigures:
    """Peak of the worst rank, host RAM of the worst node, and seconds of a step; None where it is not known."""

    process_bytes: int | None
    host_bytes: int | None
    step_seconds: float | None


@dataclass(frozen=True)
class RecordedRun:
    """A finished run: what it was predicted to cost, before earlier runs corrected that, and what it did cost.

    ``ftplan`` is the version that predicted and ``calibrated_at`` the calibration it used: other ones predict
    otherwise.
    """

    run_id: str
    finished_at: str
    ftplan: str
    devices: tuple[str, ...]
    calibrated_at: tuple[str, ...]
    ranks: int
    model: str
    method: str
    sharding: str
    offload: str
    predicted: RunFigures
    measured: RunFigures
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """All that is kept: calibrations, and the newest runs, the last at the end."""

    calibrations: tuple[Calibration, ...] = ()
    runs: tuple[RecordedRun, ...] = ()

    def newest(self, device: str) -> Calibration | None:
        """The newest calibration of the device called so."""
        found = (one for one in self.calibrations if one.device == device)
        return max(found, key=lambda one: one.measured_at, default=None)
