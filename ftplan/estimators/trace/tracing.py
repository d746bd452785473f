"""One trace in this process: build, load, train two steps on fake tensors, and return what was recorded."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Final

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh

from ftplan.estimators.trace import ranks
from ftplan.estimators.trace.building import Built, Loader, build
from ftplan.estimators.trace.checkpoints import checkpointing
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
ZERO: Final = ("zero1", "zero2", "zero3")


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
    """Trace ``settings`` here; `running` says where that may be."""
    device = Device(capability=settings.capability, workspace_bytes=settings.workspace_bytes)
    recorder = Recorder(device)
    zero = settings.config.sharding in ZERO
    with ExitStack() as stack:
        stack.enter_context(device_behaviour(device, settings.config))
        built = build(replace(settings, whole=True) if zero else settings)
        stack.enter_context(loss_behaviour(built, settings.config))
        mesh = stack.enter_context(ranks.fake_ranks(settings, recorder)) if settings.world_size > 1 else None
        if zero:
            stack.enter_context(_deepspeed(settings, recorder))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(recorder)
        recorder.mark(Phase.LOAD)
        _load(built, settings, recorder, stack)
        built.model.train()
        gc.collect()
        recorder.empty_cache()  # Trainer frees the cache before it trains
        if settings.config.sharding == "zero3" and settings.config.trains_adapters:
            stack.enter_context(checkpointing(built.base.modules(), calls=settings.stack.checkpoints_calls))
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


def _deepspeed(settings: TraceSettings, recorder: Recorder) -> AbstractContextManager[None]:
    from ftplan.estimators.trace.zero import deepspeed_behaviour  # in a process of its own only

    return deepspeed_behaviour(settings, recorder)


def _load(built: Built, settings: TraceSettings, recorder: Recorder, stack: ExitStack) -> None:
    """Weights to where the loop expects them: the device; a rank's RAM, where they are sharded or moved from there."""
    config = settings.config
    if config.sharding == "zero3" and config.quantization == "none":
        from ftplan.estimators.trace.zero import load_partitioned

        load_partitioned(built, settings, recorder)
        return
    if config.sharding in FSDP and config.offload != "none":
        stack.enter_context(ranks.offloading(recorder))
    through_host = config.sharding in (*FSDP, *ZERO)
    if not through_host or settings.load == "built" or config.quantization != "none":
        Loader(built, settings, recorder).load()
        return
    with recorder.making_on_host():
        Loader(built, settings, recorder).load()
    if config.sharding in FSDP:
        stack.enter_context(ranks.arriving_from_host(recorder))


def _loop(built: Built, settings: TraceSettings, recorder: Recorder, mesh: DeviceMesh | None) -> PlainLoop:
    sharding = settings.config.sharding
    if sharding in ZERO:
        from ftplan.estimators.trace.zero import ZeroLoop

        return ZeroLoop(built, settings, recorder)
    if sharding in FSDP and mesh is not None:
        return ranks.Fsdp2Loop(built, settings, recorder, mesh)
    if sharding == "ddp":
        return ranks.DdpLoop(built, settings, recorder)
    return PlainLoop(built, settings, recorder)
