"""One rank of several: the real DDP and FSDP2 on fake tensors, under a process group that only counts its members."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore

from ftplan.estimators.trace.buckets import BUCKETS
from ftplan.estimators.trace.building import DTYPES, Built
from ftplan.estimators.trace.loop import PlainLoop
from ftplan.estimators.trace.patches import replaced
from ftplan.estimators.trace.recorder import Recorder
from ftplan.estimators.trace.settings import TraceSettings
from ftplan.estimators.trace.stream import Kind

REPLICATE: Final = "dp_replicate"
SHARD: Final = "dp_shard"


@contextmanager
def fake_ranks(settings: TraceSettings, recorder: Recorder) -> Iterator[DeviceMesh]:
    """A process group of ``settings.world_size`` in which this process is ``settings.rank`` and nothing is sent.

    Gives its mesh, which has to be made before fake tensors are.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=settings.rank, world_size=settings.world_size)
    try:
        with ExitStack() as stack:
            stack.enter_context(_streams(recorder))
            stack.enter_context(_quiet_propagation(recorder))
            if settings.config.quantization != "none":
                stack.enter_context(_four_bit())
            yield _mesh(settings)
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------- DDP


class DdpLoop(PlainLoop):
    """torch's DistributedDataParallel with its buckets; collectives answer with what they were given."""

    def prepare(self) -> None:
        """Wrap the model as accelerate does: autocast inside, DDP outside."""
        from torch.nn.parallel import distributed

        model = self.built.model
        model.forward = self.called
        with (
            replaced(distributed, "_verify_param_shape_across_processes", lambda *_, **__: None),
            replaced(distributed, "_sync_module_states", lambda *_, **__: None),
        ):
            before = len(self.recorder.recording.events)
            self.wrapped = distributed.DistributedDataParallel(model, find_unused_parameters=False)
        self._buckets(before)
        self.wrapped.register_comm_hook(None, _keep_bucket)
        self.wrapped.reducer = _NoRebuild(self.wrapped.reducer)
        self.called = self.wrapped
        self.module = model
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._ready)

    def _ready(self, parameter: torch.Tensor) -> None:
        if self.recorder.last_micro_batch:
            self.recorder.gradient_ready(parameter)

    def _buckets(self, before: int) -> None:
        for event in self.recorder.recording.events[before:]:
            if event.kind is Kind.ALLOC:
                self.recorder.recording.allocations[event.key].category = BUCKETS

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """accelerate's ``no_sync`` but for the last micro-batch."""
        self.wrapped.require_backward_grad_sync = last
        super().backward(loss, last=last)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Through the wrapper, which prepares its reducer for a backward that synchronizes."""
        self.wrapped.require_backward_grad_sync = self.recorder.last_micro_batch
        return super().forward(batch)


def _keep_bucket(_, bucket):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - DDP refuses annotations of others
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


class _NoRebuild:
    """DDP's reducer without the second layout of its buckets, which reads data; their bytes are the same."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


# ---------------------------------------------------------------------- FSDP2


class Fsdp2Loop(PlainLoop):
    """torch's fully_shard as accelerate applies it to a model."""

    def __init__(self, built: Built, settings: TraceSettings, recorder: Recorder, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        super().__init__(built, settings, recorder)

    def prepare(self) -> None:
        """Shard every decoder layer, the embedding, the tail and the rest (accelerate.utils.fsdp2_prepare_model)."""
        from accelerate.utils import fsdp_utils

        model = self.built.model
        model.forward = self.called
        accelerator = _Accelerator(self.settings, self._mesh)
        self.module = fsdp_utils.fsdp2_prepare_model(accelerator, model)
        self.called = self.module

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Gradients stay whole between micro-batches unless every one of them is synchronized."""
        sync = self.recorder.last_micro_batch or self.settings.config.sync_each_batch
        self.module.set_requires_gradient_sync(sync)
        return super().forward(batch)

    def save(self) -> None:
        """Every parameter is gathered in turn, then moved to the host (torch.distributed.checkpoint.state_dict)."""
        with torch.no_grad():
            for parameter in self.module.parameters():
                if isinstance(parameter, DTensor) and not self.recorder.is_host(parameter.to_local()):
                    parameter.full_tensor()


class _Accelerator:
    """What ``fsdp2_prepare_model`` asks of an Accelerator."""

    is_main_process = False
    device = torch.device("cpu")

    def __init__(self, settings: TraceSettings, mesh: DeviceMesh) -> None:
        config = settings.config
        quantized = config.quantization != "none"
        # accelerate leaves the trainables of a 4-bit model as they are; it knows one by the class of its parameters.
        self.mixed_precision = "no" if config.precision == "none" or quantized else config.precision
        self.state = _State(_Plugin(settings))
        self.torch_device_mesh = _Mesh(mesh)
        self.parallelism_config = _Parallelism()


class _State:
    def __init__(self, plugin: Any) -> None:
        self.fsdp_plugin = plugin


class _Parallelism:
    fsdp_dim_names = ("dp",)


class _Mesh:
    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def __getitem__(self, _: object) -> DeviceMesh:
        return self._mesh


class _Plugin:
    """accelerate's FullyShardedDataParallelPlugin, version 2, as ftplan configures it."""

    transformer_cls_names_to_wrap = None
    ignored_modules = None
    cpu_ram_efficient_loading = False

    def __init__(self, settings: TraceSettings) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        config = settings.config
        self.auto_wrap_policy = functools.partial(transformer_auto_wrap_policy)
        self.reshard_after_forward = config.sharding != "fsdp2-grad-op"
        self.cpu_offload = CPUOffloadPolicy() if config.offload != "none" else OffloadPolicy()
        dtype = None if config.precision == "none" else DTYPES[config.precision]
        self.mixed_precision_policy = dtype and MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=dtype, output_dtype=dtype
        )

    def set_auto_wrap_policy(self, model: torch.nn.Module) -> None:
        """The policy wraps the classes in the model's ``_no_split_modules``, which accelerate reads itself."""


def _mesh(settings: TraceSettings) -> DeviceMesh:
    if settings.config.sharding != "hsdp":
        return init_device_mesh("cpu", (settings.world_size,))
    inside = settings.ranks_per_node
    return init_device_mesh("cpu", (settings.world_size // inside, inside), mesh_dim_names=(REPLICATE, SHARD))


@contextmanager
def _four_bit() -> Iterator[None]:
    """Layers find the state of a weight that FSDP2 gathered; bitsandbytes would wrap it in a class fakes refuse."""
    import bitsandbytes.nn.modules as modules

    def attach(module: Any) -> None:
        if getattr(module.weight, "quant_state", None) is None:
            module.weight.quant_state = module.quant_state

    with replaced(modules, "fix_4bit_weight_quant_state_from_module", attach):
        yield


@contextmanager
def offloading(recorder: Recorder) -> Iterator[None]:
    """FSDP2's copies between host and device, which on fake CPU tensors are no copies."""
    to, cpu, pin = torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.pin_memory

    def by_fsdp() -> bool:
        return "_fully_shard" in sys._getframe(2).f_code.co_filename

    def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.device) and "non_blocking" in kwargs and by_fsdp():
            return recorder.copy_to_device(tensor) if recorder.is_host(tensor) else _to_host(recorder, tensor)
        return to(tensor, *args, **kwargs)

    def to_cpu(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if by_fsdp():
            return tensor if recorder.is_host(tensor) else _to_host(recorder, tensor)
        return cpu(tensor, *args, **kwargs)

    with (
        replaced(torch.Tensor, "to", moved),
        replaced(torch.Tensor, "cpu", to_cpu),
        replaced(torch.Tensor, "pin_memory", lambda tensor, *_: tensor if by_fsdp() else pin(tensor)),
        replaced(torch.Tensor, "is_pinned", lambda *_: True),
    ):
        yield


def _to_host(recorder: Recorder, tensor: torch.Tensor) -> torch.Tensor:
    with recorder.pause():
        copy = tensor.clone()
    return recorder.move_to_host(copy)


@contextmanager
def arriving_from_host(recorder: Recorder) -> Iterator[None]:
    """fully_shard moves a module's parameters to the device just before it shards them."""
    from torch.distributed.fsdp._fully_shard import _fsdp_init as init
    from torch.distributed.fsdp._fully_shard import _fully_shard as module

    def move(params: list[torch.nn.Parameter], buffers: list[torch.Tensor], _: torch.device) -> None:
        for tensor in (*params, *buffers):
            if recorder.is_host(tensor):
                tensor.data = recorder.copy_to_device(tensor.data)

    owner = init if hasattr(init, "_move_states_to_device") else module
    with ExitStack() as stack:
        stack.enter_context(replaced(owner, "_move_states_to_device", move))
        if owner is init and "_move_states_to_device" in vars(module):
            stack.enter_context(replaced(module, "_move_states_to_device", move))
        yield


# ---------------------------------------------------------------------- torch's side


class _Stream:
    """A stream with a number, so that what is allocated on it is known to be its own."""

    _made = 0

    def __init__(self, *_: object, number: int | None = None, **__: object) -> None:
        if number is None:
            _Stream._made += 1
        self.number = _Stream._made if number is None else number

    def wait_stream(self, _: object) -> None:
        """Nothing runs, so nothing waits."""

    def wait_event(self, _: object) -> None:
        """Nothing runs, so nothing waits."""

    def synchronize(self) -> None:
        """Nothing runs, so nothing waits."""

    def record_event(self, event: object = None) -> object:
        """An event that has happened."""
        return event or torch.cpu.Event()


@contextmanager
def _streams(recorder: Recorder) -> Iterator[None]:
    """``torch.cpu``'s streams are kept apart, and the recorder is told which one is current."""
    _Stream._made = 0

    def current(*_: object) -> _Stream:
        return _Stream(number=recorder.stream)

    with (
        replaced(torch.cpu, "Stream", _Stream),
        replaced(torch.cpu, "current_stream", current),
        replaced(torch.cpu, "stream", lambda stream: recorder.on_stream(stream.number)),
    ):
        yield


@contextmanager
def _quiet_propagation(recorder: Recorder) -> Iterator[None]:
    """DTensor infers shapes by running operators on whole tensors, which takes no memory of the device."""
    name = "_propagate_tensor_meta_non_cached"
    original: Callable[..., Any] = getattr(ShardingPropagator, name)

    def quiet(*args: Any, **kwargs: Any) -> Any:
        with recorder.pause():
            return original(*args, **kwargs)

    with replaced(ShardingPropagator, name, quiet):
        yield
