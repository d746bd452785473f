"""Calibrate: measure this machine's devices, keep the figures, show and forget them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from ftplan.errors import InputError, RunFailedError
from ftplan.launcher.probing import Part, Probe, Probed, run_probe
from ftplan.profiles import store
from ftplan.profiles.calibration import Calibration, DeviceFigures, Kept
from ftplan.profiles.detect import detect_gpus, detect_host, driver_version, visible_names

DEVICES: Final = ("local", "cpu")
LIMIT_SECONDS: Final = 105.0
"""All of it, with what it takes to end processes, stays under two minutes."""


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of device of this machine, with the probe that measures one of them."""

    name: str
    probe: Probe


OnPart = Callable[[str, Part], None]
"""Told the device's name, empty for a group, and the part that ended."""


def calibrate(gpus: str, on_part: OnPart) -> tuple[Calibration, ...]:
    """Measure each kind of device that ``gpus`` (one of `DEVICES`) means here, keep the figures and return them.

    Raises InputError for anything else or without torch, RunFailedError if nothing could be measured.
    """
    if gpus.strip().lower() not in DEVICES:
        hint = "only this machine can be measured: local, or cpu for its CPU"
        raise InputError(f"cannot calibrate {gpus!r}", hint=hint, field="gpus")
    if importlib.util.find_spec("torch") is None:
        raise InputError("calibrating needs torch", hint="pip install 'ftplan[train]'")
    # What cannot be kept in the end is said at the beginning.
    store.load()
    store.require_writable()
    devices, group = _local(on_cpu=gpus.strip().lower() == "cpu")
    deadline = time.monotonic() + LIMIT_SECONDS
    probed = {device.name: run_probe(device.probe, deadline, partial(on_part, device.name)) for device in devices}
    shared = run_probe(group, deadline, partial(on_part, "")) if group is not None else Probed()
    made = tuple(_calibrations(probed.items(), shared))
    for one in made:
        store.keep_calibration(one)
    return made


def kept() -> Kept:
    """Everything measured and recorded so far; raises InputError if it cannot be read."""
    return store.load()


def forget() -> tuple[Path, ...]:
    """Remove everything measured and recorded so far; returns the files that were removed."""
    return store.reset()


def _local(*, on_cpu: bool) -> tuple[list[Device], Probe | None]:
    """One device of each kind, and the group of all if there are several."""
    gpus = () if on_cpu else detect_gpus()
    if not gpus:
        return _local_cpu()
    names = visible_names()
    first: dict[str, str] = {}
    for gpu, visible in zip(gpus, names, strict=True):
        first.setdefault(gpu.name, visible)
    devices = [Device(name, Probe("cuda", env={"CUDA_VISIBLE_DEVICES": visible})) for name, visible in first.items()]
    group = Probe("cuda", len(gpus), {"CUDA_VISIBLE_DEVICES": ",".join(names)}) if len(gpus) > 1 else None
    return devices, group


def _local_cpu() -> tuple[list[Device], Probe | None]:
    """The CPU with all its cores, and two processes that share them."""
    cores = detect_host().cores
    unseen = {"CUDA_VISIBLE_DEVICES": ""}
    alone = Probe("cpu", env={**unseen, "OMP_NUM_THREADS": str(cores)})
    pair = Probe("cpu", 2, {**unseen, "OMP_NUM_THREADS": str(cores // 2)}) if cores > 1 else None
    return [Device("cpu", alone)], pair


def _calibrations(probed: Iterable[tuple[str, Probed]], shared: Probed) -> Iterator[Calibration]:
    """A calibration for each device, with what the group has in common."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for name, found in probed:
        failures = found.failures | shared.failures
        figures = found.figures | shared.figures
        if not figures:
            raise RunFailedError(f"nothing could be measured on {name}", hint="; ".join(sorted(set(failures.values()))))
        driver = "" if name == "cpu" else driver_version()
        yield Calibration(name, driver, found.torch, now, DeviceFigures(**figures), failures)
