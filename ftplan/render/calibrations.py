"""Calibrations and recorded runs as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ftplan.launcher.probing import Part
from ftplan.profiles.calibration import Calibration, DeviceFigures, Kept, RecordedRun
from ftplan.render.console import SignOfLife, aside, duration, err, number, off, out, size, words
from ftplan.render.tables import Cell, Column, print_table
from ftplan.units import GB

FIGURES: Final = (Column("", "name"), Column("", "text"))
RUNS: Final = (
    Column("recorded run", "name"),
    Column("on", "value"),
    Column("kind", "text"),
    Column("process"),
    Column("prediction", said="{}"),
    Column("step"),
    Column("prediction", said="{}"),
)
HINT = "measure this machine: ftplan calibrate"


class CalibrationDisplay(SignOfLife):
    """Progress on stderr: a line for each part as it ends, and on a terminal a sign of life."""

    def __init__(self) -> None:
        super().__init__("measuring, two minutes at most")

    def show(self, device: str, part: Part) -> None:
        """Show one part that ended; a group's has no device."""
        where = f" of {device}" if device else ""
        how = f"failed: {part.failed}" if part.failed else "measured"
        console = err() if part.failed else aside()
        console.print(words(f"{part.name}{where}: {how}"), soft_wrap=True)


def print_calibration(calibration: Calibration, *, brief: bool = False) -> None:
    """One device's figures, or how many of them there are."""
    if brief:
        _print_brief(calibration)
        return
    versions = [f"driver {calibration.driver}"] if calibration.driver else []
    told = " · ".join([*versions, f"torch {calibration.torch}", calibration.measured_at[:10]])
    out().print(words((calibration.device, "bold"), f" · {told}"))
    print_table(FIGURES, list(_figures(calibration.figures)), has_head=False)
    for name, reason in calibration.failures.items():
        out().print(words(f"not measured: {name}: {reason}"))


def _print_brief(calibration: Calibration) -> None:
    missed = f", {len(calibration.failures)} not" if calibration.failures else ""
    figures = len(list(_figures(calibration.figures)))
    measured = f" · {figures} figures measured{missed} · {calibration.measured_at[:10]}"
    out().print(words((calibration.device, "bold"), measured), soft_wrap=True)


def print_kept(kept: Kept, *, brief: bool = False) -> None:
    """All calibrations, and the recorded runs with how far off their predictions were; or how many there are."""
    if not kept.calibrations and not kept.runs:
        out().print("nothing was measured or recorded yet")
        aside().print(words(("hint: ", "bold cyan"), HINT), soft_wrap=True)
    for calibration in kept.calibrations:
        print_calibration(calibration, brief=brief)
    if kept.runs and brief:
        out().print(f"{len(kept.runs)} recorded run(s)")
    elif kept.runs:
        print_table(RUNS, [_run(run) for run in kept.runs])


def print_removed(removed: Sequence[Path], *, brief: bool = False) -> None:
    """Which files were removed, or how many."""
    if removed and brief:
        out().print(f"removed {len(removed)} file(s)")
        return
    for path in removed:
        out().print(words(f"removed {path}"), soft_wrap=True)
    if not removed:
        out().print("nothing to remove")


def _figures(figures: DeviceFigures) -> Iterator[tuple[str, str]]:
    if figures.context_bytes is not None:
        yield "context", size(figures.context_bytes)
    if figures.matrix_flops_per_second is not None:
        yield "matrix rate", f"{number(figures.matrix_flops_per_second / 1e12)} TFLOP/s in {figures.matrix_dtype}"
    if figures.memory_bytes_per_second is not None:
        yield "memory bandwidth", _rate(figures.memory_bytes_per_second)
    if figures.to_device_bytes_per_second is not None:
        yield "host to device", _rate(figures.to_device_bytes_per_second)
    if figures.from_device_bytes_per_second is not None:
        yield "device to host", _rate(figures.from_device_bytes_per_second)
    if figures.launch_seconds is not None:
        yield "launch time", f"{figures.launch_seconds * 1e6:.1f} µs an operation, forward and backward"
    if figures.nccl_bytes is not None:
        yield "communicators", size(figures.nccl_bytes)
    if figures.link_bytes_per_second is not None:
        yield "device link", f"{_rate(figures.link_bytes_per_second)} in an all-reduce of {figures.ranks}"


def _rate(bytes_per_second: float) -> str:
    return f"{number(bytes_per_second / GB)} GB/s"


def _run(run: RecordedRun) -> tuple[Cell, ...]:
    return (
        run.run_id,
        f"{run.ranks}x{'+'.join(run.devices)}",
        " ".join(part for part in (run.method, run.sharding, run.offload) if part != "none"),
        *_beside(run.predicted.process_bytes, run.measured.process_bytes, size),
        *_beside(run.predicted.step_seconds, run.measured.step_seconds, duration),
    )


def _beside(predicted: float | None, measured: float | None, show: Callable[[float], str]) -> tuple[str, str]:
    """What was measured, and by how much the prediction was off."""
    return ("-", "") if measured is None else (show(measured), off(predicted, measured))
