"""One trace in this process: build, load, train two steps on fake tensors, and return what was recorded."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh

from ftplan.estimators.trace import ranks
from ftplan.estimators.trace.building import Built, Loader, build
from ftplan.estimators.trace.kernels import Device
from ftplan.estimators.trace.layers import Reduction
from ftplan.estimators.trace.loop import PlainLoop, run
from ftplan.estimators.trace.losses import loss_behaviour
from ftplan.estimators.trace.patches import device_behaviour
from ftplan.estimators.trace.record import Recording
from ftplan.estimators.trace.recorder import Recorder
from ftplan.estimators.trace.settings import TraceSettings
from ftplan.results import Phase

FSDP: Final = ("fsdp2", "fsdp2-grad-op", "hsdp")


@dataclass(frozen=True)
class Traced:
    """What was recorded on the device and on the host, and how the layers were reduced."""

    device: Recording
    host: Recording
    reduction: Reduction
    layers: int
    total_params: int
    trainable_params: int


def trace(settings: TraceSettings) -> Traced:
    """Trace ``settings`` here; see `ftplan.estimators.trace` for where to run it."""
    device = Device(capability=settings.capability, workspace_bytes=settings.workspace_bytes)
    recorder = Recorder(device)
    with ExitStack() as stack:
        stack.enter_context(device_behaviour(device, settings.config))
        built = build(settings)
        stack.enter_context(loss_behaviour(built, settings.config))
        mesh = stack.enter_context(ranks.fake_ranks(settings, recorder)) if settings.world_size > 1 else None
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(recorder)
        recorder.mark(Phase.LOAD)
        _load(built, settings, recorder, stack)
        built.model.train()
        gc.collect()
        recorder.empty_cache()  # Trainer frees the cache before it trains
        loop = _loop(built, settings, recorder, mesh)
        if settings.world_size > 1:
            gc.collect()
            recorder.empty_cache()
        if settings.load == "built":  # as the runs that measured did
            recorder.reset_peak()
        run(built, settings, recorder, loop)
    return Traced(
        recorder.recording,
        recorder.host,
        built.reduction,
        built.layer_count,
        built.total_params,
        built.trainable_params,
    )


def _load(built: Built, settings: TraceSettings, recorder: Recorder, stack: ExitStack) -> None:
    config = settings.config
    sharded = config.sharding in FSDP
    if sharded and config.offload != "none":
        stack.enter_context(ranks.offloading(recorder))
    if not (sharded and settings.load == "pretrained" and config.quantization == "none"):
        Loader(built, settings, recorder).load()
        return
    # Each rank reads the model into its RAM; fully_shard moves it over module by module.
    with recorder.making_on_host():
        Loader(built, settings, recorder).load()
    stack.enter_context(ranks.arriving_from_host(recorder))


def _loop(built: Built, settings: TraceSettings, recorder: Recorder, mesh: DeviceMesh | None) -> PlainLoop:
    sharding = settings.config.sharding
    if sharding in FSDP and mesh is not None:
        return ranks.Fsdp2Loop(built, settings, recorder, mesh)
    if sharding == "ddp":
        return ranks.DdpLoop(built, settings, recorder)
    return PlainLoop(built, settings, recorder)
