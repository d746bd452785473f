"""DeepSpeed's ZeRO 1, 2 and 3 of one rank: the real engine on fake tensors under a fake process group.

Only for a process of its own that has `running.ZERO_ENVIRONMENT` before deepspeed is imported: DeepSpeed chooses its
accelerator then, and keeps much of its state in globals. Its CPU accelerator stands in for CUDA's, with streams and
pinning, and a host of its own, because here the device is a CPU too. Line numbers are of deepspeed 0.19.8.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from ftplan.estimators.trace.building import Built, Loader, is_adapter
from ftplan.estimators.trace.loop import PlainLoop
from ftplan.estimators.trace.optimizers import make_optimizer
from ftplan.estimators.trace.patches import replaced
from ftplan.estimators.trace.recorder import HOST, Recorder
from ftplan.estimators.trace.settings import TraceSettings

STAGES: Final[Mapping[str, int]] = {"zero1": 1, "zero2": 2, "zero3": 3}
_ROOM: Final = 0
"""Free memory as stages 1 and 2 are told of: they flatten the parameters on the host then, as they do where a card does
not hold them twice (stage_1_and_2.py:450). Where it does they flatten there, which is higher but never decides."""


def deepspeed_config(settings: TraceSettings, hidden_size: int) -> dict[str, Any]:
    """DeepSpeed's settings as our engine runs it: what launcher.artifacts renders, with transformers' "auto" filled in.

    Estimators may not import the launcher, so its choices are written here once more; the rest is DeepSpeed's default.
    The optimizer is torch's. On the host accelerate would make it DeepSpeedCPUAdam, which keeps the same states.
    """
    config = settings.config
    stage = STAGES[config.sharding]
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": config.zero_overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": _given(config.zero_reduce_bucket, hidden_size * hidden_size),
    }
    if stage == 3:
        prefetched = _given(config.zero_prefetch_bucket, int(0.9 * hidden_size * hidden_size))
        zero["stage3_prefetch_bucket_size"] = prefetched
        zero["stage3_param_persistence_threshold"] = _given(config.zero_persistence_threshold, 10 * hidden_size)
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "optimizer+params" and stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": config.micro_batch * config.accumulation * settings.world_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def _given(elements: int | None, auto: int) -> int:
    return auto if elements is None else elements


class ZeroLoop(PlainLoop):
    """Training through DeepSpeed's engine, which clips, accumulates and steps by itself."""

    def __init__(self, built: Built, settings: TraceSettings, recorder: Recorder) -> None:
        super().__init__(built, settings, recorder)
        import deepspeed

        if settings.config.offload != "none":  # torch's optimizers take tensors one by one on a host
            self.optimizer = make_optimizer(settings.config, self.module, recorder, foreach=False)
        config = deepspeed_config(settings, _hidden_size(built))
        with _host_named_cpu(unnamed=True), replaced(self.module, "to", self._arrive):
            self.engine, self.sharded, _, _ = deepspeed.initialize(
                model=self.module, optimizer=self.optimizer, config=config
            )
        self.called = self.engine
        self._categorize()

    def _arrive(self, *_: Any, **__: Any) -> torch.nn.Module:
        """What the model has on the host goes to the device, in place: new parameters are what fake ones refuse."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if self.recorder.is_host(tensor):
                tensor.data = self.recorder.copy_to_device(tensor.data)
        return self.module

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Gradients of ``loss``, reduced and partitioned on the way; kept until the last of the accumulation."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        with _host_named_cpu():
            self.engine.backward(loss, scale_wrt_gas=False)
        for partition in getattr(self.sharded, "averaged_gradients", {}).values():
            for gradient in partition if partition is not None else ():
                self.recorder.categorize(gradient, "gradients")

    def clip(self) -> None:
        """Done by the engine's step."""

    def step(self) -> None:
        """Clip, step, gather the new weights."""
        with _host_named_cpu():
            self.engine.step()

    def save(self) -> None:
        """ZeRO-3 gathers the weights module by module; what rank 0 takes to its host, estimators.host counts."""
        if STAGES[self.settings.config.sharding] == 3:
            with torch.no_grad(), replaced(torch.Tensor, "cpu", lambda tensor: tensor.to("meta")):
                self.engine._zero3_consolidated_16bit_state_dict()

    def _categorize(self) -> None:
        """Name the engine's flat tensors, of which stages 1 and 2 hold others than stage 3."""
        trained = "adapters" if self.settings.config.trains_adapters else "weights"
        names = {
            "single_partition_of_fp32_groups": "master weights",
            "fp32_partitioned_groups_flat": "master weights",
            "bit16_groups_flat": trained,
            "fp16_partitioned_groups_flat": trained,
            "param_buffer_of_bit16_for_cpu_offload_groups": trained,
        }
        for attribute, category in names.items():
            for tensor in getattr(self.sharded, attribute, ()):
                self.recorder.categorize(tensor, category)
                if tensor.grad is not None:
                    self.recorder.categorize(tensor.grad, "gradients")


def _hidden_size(built: Built) -> int:
    """As transformers' integration finds it (integrations/deepspeed.py, trainer_config_finalize)."""
    config = built.base.config
    size: int = getattr(config, "hidden_size", None) or config.get_text_config().hidden_size
    return size


# ---------------------------------------------------------------------- ZeRO-3's weights


def load_partitioned(built: Built, settings: TraceSettings, recorder: Recorder) -> None:
    """Base weights made and partitioned one by one, as zero.Init does when a module is made; then the adapters."""
    _PartitioningLoader(built, settings, recorder).load()


class _PartitioningLoader(Loader):
    def __init__(self, built: Built, settings: TraceSettings, recorder: Recorder) -> None:
        super().__init__(built, settings, recorder)
        import deepspeed

        self._sharding = recorder
        self._init = deepspeed.zero.Init(config_dict_or_path=deepspeed_config(settings, _hidden_size(built)))

    def _place(self, holder: dict[str, Any], name: str, tensor: torch.Tensor) -> None:
        super()._place(holder, name, tensor)
        made = holder[name]
        if isinstance(made, torch.nn.Parameter) and not is_adapter(self._name(tensor)) and not hasattr(made, "ds_id"):
            with _host_named_cpu():
                self._init._convert_to_zero_parameters([made])
            self._sharding.categorize(made.ds_tensor, "weights")


# ---------------------------------------------------------------------- what DeepSpeed asks of its surroundings


@contextmanager
def deepspeed_behaviour(settings: TraceSettings, recorder: Recorder) -> Iterator[None]:
    """A fake process group and CUDA's answers from DeepSpeed's accelerator, with the host told from the device."""
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3, stage_1_and_2, utils

    deepspeed.utils.logging.logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        enter = stack.enter_context
        if not dist.is_initialized():
            dist.init_process_group("fake", store=FakeStore(), rank=settings.rank, world_size=settings.world_size)
            stack.callback(dist.destroy_process_group)
        enter(_accelerator(recorder))
        enter(replaced(deepspeed.utils.nvtx, "enable_nvtx", False))
        deepspeed.comm.init_distributed(dist_backend="fake", auto_mpi_discovery=False, dist_init_required=False)
        for owner in (stage_1_and_2.DeepSpeedZeroOptimizer, stage3.DeepSpeedZeroOptimizer_Stage3):
            enter(replaced(owner, "has_overflow", _never_overflows(owner.has_overflow)))
        for module in (partitioned_param_coordinator, stage3, utils):
            for name in ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks"):
                if hasattr(module, name):
                    enter(replaced(module, name, lambda *_, **__: None))
        gather = partition_parameters._dist_allgather_fn
        enter(replaced(partition_parameters, "_dist_allgather_fn", _gathering(gather, recorder)))
        if STAGES[settings.config.sharding] == 3:
            # zero.Init does this where it wraps the making of the model, so that no saved weight outlives its release.
            enter(replaced(torch.nn.functional, "linear", partition_parameters.zero3_linear_wrap))
        yield


def _never_overflows(check: Callable[..., Any]) -> Callable[..., bool]:
    """The check for its memory, with an answer that fake gradients cannot give."""

    def answer(self: Any, *args: Any, **kwargs: Any) -> bool:
        check(self, *args, **kwargs)
        return False

    return answer


class _Work:
    """An asynchronous collective, which keeps its input until someone waits (ProcessGroupNCCL, TensorShelf)."""

    def __init__(self, work: Any, tensor: torch.Tensor) -> None:
        self._work, self._tensor = work, tensor

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait, and let go."""
        del self._tensor
        return self._work.wait(*args, **kwargs)


def _gathering(gather: Callable[..., Any], recorder: Recorder) -> Callable[..., _Work]:
    def start(tensor: torch.Tensor, output: torch.Tensor, group: Any = None) -> _Work:
        recorder.categorize(output, "gathered parameters")
        return _Work(gather(tensor, output, group), tensor)

    return start


class _DeviceName(str):
    """The device's name as the accelerator tells it; any other "cpu" is the host."""

    __slots__ = ()


class _host_named_cpu(TorchFunctionMode):  # type: ignore[misc]  # noqa: N801 - a context manager
    """In DeepSpeed's own code: what it asks for on the CPU is made on, or moved to, the host.

    ``unnamed`` says that an empty tensor without a device is the host's too, as it is to torch.
    """

    def __init__(self, *, unnamed: bool = False) -> None:
        super().__init__()
        self._unnamed = unnamed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cpu:
            return torch.Tensor.to(args[0], HOST)
        if func is torch.Tensor.to and len(args) > 1 and _names_host(args[1]):
            args = (args[0], HOST, *args[2:])
        if _names_host(kwargs.get("device", "cpu" if self._unnamed and func is torch.empty else None)):
            kwargs = {**kwargs, "device": HOST}
        return func(*args, **kwargs)


def _names_host(device: Any) -> bool:
    return isinstance(device, str) and not isinstance(device, _DeviceName) and device == "cpu"


class _Stream:
    """A stream by its number in the recording. Nothing runs, so nothing waits."""

    def __init__(self, number: int) -> None:
        self.number = number

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: _Stream) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: _Event) -> None:
        """Nothing to wait for."""


class _Event:
    """An event, always past."""

    def record(self, stream: _Stream | None = None) -> None:
        """Past at once."""

    def query(self) -> bool:
        """Whether it is past."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _Streams:
    """The streams of the device; allocations go to the current one's memory."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.default = _Stream(0)
        self._known = [self.default]

    def new(self, *_: Any, **__: Any) -> _Stream:
        """One more stream."""
        self._known.append(_Stream(len(self._known)))
        return self._known[-1]

    @property
    def current(self) -> _Stream:
        """The stream on which tensors are allocated."""
        return self._known[self._recorder.stream]

    def use(self, stream: _Stream) -> Any:
        """Make a stream the current one."""
        return self._recorder.on_stream(stream.number)


@contextmanager
def _accelerator(recorder: Recorder) -> Iterator[None]:
    """DeepSpeed's CPU accelerator answers as CUDA's does (accelerator/cuda_accelerator.py)."""
    from deepspeed.accelerator import get_accelerator

    streams, pinning, name = _Streams(recorder), _Pinning(recorder), _DeviceName("cpu")

    def record_stream(tensor: torch.Tensor, stream: _Stream) -> None:
        recorder.used_on(tensor, stream.number)

    answers: dict[str, Any] = {
        "is_synchronized_device": lambda _: False,
        "device_name": lambda *_: name,
        "current_device_name": lambda _: name,
        "current_device": lambda _: 0,
        "communication_backend_name": lambda _: "fake",
        "available_memory": lambda *_: _ROOM,
        "total_memory": lambda *_: _ROOM,
        "create_op_builder": lambda *_: None,  # nothing is compiled
        "empty_cache": lambda _: recorder.empty_cache(),
        "on_accelerator": lambda _, tensor: tensor.device != HOST,
        "pin_memory": lambda _, *args, **kwargs: pinning.copy(*args, **kwargs),
        "Stream": staticmethod(streams.new),
        "Event": _Event,
        "stream": lambda _, stream: streams.use(stream),
        "current_stream": lambda *_: streams.current,
        "default_stream": lambda *_: streams.default,
    }
    with ExitStack() as stack:
        for method, answer in answers.items():
            stack.enter_context(replaced(type(get_accelerator()), method, answer))
        stack.enter_context(replaced(torch.Tensor, "record_stream", record_stream))
        yield


class _Pinning:
    """Memory that is pinned: rounded up to a power of two, and never given back (c10, CachingHostAllocator)."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._kept: list[torch.Tensor] = []

    def copy(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        """A pinned copy of ``tensor`` on the host."""
        del make_copy, match_shape
        if not tensor.numel():
            return tensor.to(HOST)
        size = tensor.element_size()
        block = torch.empty((1 << (tensor.numel() * size - 1).bit_length()) // size, dtype=tensor.dtype, device=HOST)
        self._recorder.categorize(block, "pinned")
        self._kept.append(block)
        return block[: tensor.numel()].view(tensor.shape).copy_(tensor)
