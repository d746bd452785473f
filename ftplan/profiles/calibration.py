"""What ``ftplan calibrate`` and finished runs found out about the user's devices, kept in the user's data folder.

::

    calibration.json    a `Calibration` for each device, driver and torch
    runs.jsonl          a `RecordedRun` a line, in the order they finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import append_line, write_atomic
from ftplan.results import from_json, to_json, to_jsonable

NEWEST_BYTES: Final = 16 * 2**10
"""Plans go by the runs in this much of the end of the file, about thirty; reading it takes a millisecond."""

RUN_STARTS: Final = b'{"run_id":'
"""How each line of a run begins: one that begins so and is no JSON was cut short by a kill."""


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
    matrix_dtype: str | None = None
    matrix_flops_per_second: float | None = None
    memory_bytes_per_second: float | None = None
    to_device_bytes_per_second: float | None = None
    from_device_bytes_per_second: float | None = None
    launch_seconds: float | None = None
    nccl_bytes: int | None = None
    link_bytes_per_second: float | None = None
    ranks: int | None = None


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


def data_folder() -> Path:
    """Where it is kept: ``FTPLAN_DATA``, or ``ftplan`` in the user's data folder."""
    given = os.environ.get("FTPLAN_DATA")
    return Path(given) if given else Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ftplan"


def load() -> Kept:
    """What is kept; raises InputError if a file cannot be read, or holds anything else."""
    return Kept(_calibrations(), tuple(_runs()))


def keep_calibration(calibration: Calibration) -> None:
    """Keep ``calibration``, in the place of an earlier one with the same device, driver and torch."""
    others = (one for one in _calibrations() if one.key != calibration.key)
    write_atomic(_calibration_file(), to_json((*others, calibration)))


def keep_run(run: RecordedRun) -> None:
    """Add ``run`` to those that are kept."""
    append_line(_runs_file(), json.dumps(to_jsonable(run), ensure_ascii=False))


def reset() -> tuple[Path, ...]:
    """Remove all that is kept, readable or not; returns the files that were there."""
    there = [file for file in (_calibration_file(), _runs_file()) if file.exists()]
    for file in there:
        try:
            file.unlink()
        except OSError as error:
            raise InputError(f"cannot remove {file}: {error.strerror}", field="reset") from error
    return tuple(there)


def _calibration_file() -> Path:
    return data_folder() / "calibration.json"


def _runs_file() -> Path:
    return data_folder() / "runs.jsonl"


def _calibrations() -> tuple[Calibration, ...]:
    file = _calibration_file()
    content = _end(file, None)
    if not content:
        return ()
    try:
        return from_json(tuple[Calibration, ...], content)
    except ValueError as error:
        raise _foreign(file) from error


def _runs() -> Iterator[RecordedRun]:
    file = _runs_file()
    for line in _end(file, NEWEST_BYTES).splitlines():
        try:
            yield from_json(RecordedRun, line)
        except ValueError as error:
            if line and not _is_torn(line):
                raise _foreign(file) from error


def _is_torn(line: bytes) -> bool:
    """Whether ``line`` is the beginning of a run's, and no more."""
    if not (line.startswith(RUN_STARTS) or RUN_STARTS.startswith(line)):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _end(file: Path, size_bytes: int | None) -> bytes:
    """Whole lines in the last bytes of ``file``, or all of it; nothing if there is none."""
    try:
        with file.open("rb") as opened:
            if size_bytes is not None and os.fstat(opened.fileno()).st_size > size_bytes:
                opened.seek(-size_bytes, os.SEEK_END)
                opened.readline()
            return opened.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        hint = "FTPLAN_DATA names another folder"
        raise InputError(f"cannot read {file}: {error.strerror}", hint=hint, field="calibration") from error


def _foreign(file: Path) -> InputError:
    return InputError(
        f"{file} is not what this version of ftplan keeps there",
        hint="ftplan calibrate --reset removes it",
        field="calibration",
    )
