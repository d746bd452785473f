"""One trace in this process: build, load, train two steps on fake tensors, and return what was recorded."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from ftplan.estimators.trace.building import Loader, build
from ftplan.estimators.trace.kernels import Device
from ftplan.estimators.trace.loop import PlainLoop, run
from ftplan.estimators.trace.patches import device_behaviour
from ftplan.estimators.trace.record import Recording
from ftplan.estimators.trace.recorder import Recorder
from ftplan.estimators.trace.settings import TraceSettings
from ftplan.results import Phase


@dataclass(frozen=True)
class Traced:
    """What was recorded on the device and on the host, and how many units of layers were left out of the middle."""

    device: Recording
    host: Recording
    copies: int


def trace(settings: TraceSettings) -> Traced:
    """Trace ``settings`` here; see `ftplan.estimators.trace` for where to run it."""
    device = Device(capability=settings.capability, workspace_bytes=settings.workspace_bytes)
    recorder = Recorder(device)
    with device_behaviour(device, settings.config):
        built = build(settings)
        with FakeTensorMode(allow_non_fake_inputs=True), recorder:
            recorder.mark(Phase.LOAD)
            Loader(built, settings, recorder).load()
            built.model.train()
            gc.collect()
            recorder.empty_cache()  # Trainer frees the cache before it trains
            loop = PlainLoop(built, settings, recorder)
            recorder.reset_peak()
            run(built, settings, recorder, loop)
    return Traced(recorder.recording, recorder.host, built.reduction.copies)
