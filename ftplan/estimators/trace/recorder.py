"""Follows every storage of a training step on fake tensors, from its creation to its release.

Fake CPU tensors stand in for the device's (fake CUDA tensors need a driver in the backward), so what a CUDA kernel does
otherwise is told by `kernels`: other outputs, scratch memory, gradients summed in place.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ftplan.estimators.trace import kernels
from ftplan.estimators.trace.record import NO_LAYER, Allocation, Label, Recording
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.results import Phase

_WRAPPERS: Final = frozenset({"_fn", "inner"})
"""The functions in which torch._compile.disable wraps a dispatch mode's method."""
_ENGINE: Final = "_engine_run_backward"
"""The Python function below which autograd's engine runs: an operation called from it is the engine's own."""


HOST: Final = torch.device("cpu", 1)
"""Where a tensor is on the host from the start: to torch another CPU. Without index a CPU tensor is the device's."""

_FROM_PYTHON: Final = torch.ops.aten.lift_fresh.default
"""``torch.tensor(...)`` makes its tensor on the host: constants, step counters of optimizers; too little to count."""


class _StorageRef(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that knows the storage's address, by which it is known."""

    __slots__ = ("address",)
    address: int


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Records allocations and releases, with the phase, layer and module in which they happen.

    Whoever runs the step sets ``layer``, ``in_backward`` and ``last_micro_batch`` (of an accumulation); `mark` sets
    ``phase``, `on_stream` ``stream``; ``modules`` is the stack of running modules. Nothing is recorded once it is left.
    """

    def __init__(self, device: kernels.Device) -> None:
        super().__init__()
        self.device = device
        self.recording = Recording()
        self.host = Recording()
        self.phase = Phase.LOAD
        self.layer = NO_LAYER
        self.stream = 0
        self.modules: list[str] = []
        self.in_backward = False
        self.last_micro_batch = True
        self.paused = 0
        self._live: dict[int, tuple[int, int, Recording]] = {}
        self._refs: dict[int, _StorageRef] = {}
        self._handles: set[tuple[bool, bool]] = set()
        self._undo_resize: Callable[[], None] | None = None
        self._closed = False
        self._target = self.recording
        self._recent = NO_LAYER

    # ------------------------------------------------------------------ what others say about the step

    def mark(self, phase: Phase) -> None:
        """Enter ``phase``."""
        self.phase = phase
        for recording in (self.recording, self.host):
            self._event(recording, Kind.MARK, list(Phase).index(phase), layer=self.layer)

    def empty_cache(self) -> None:
        """Record ``torch.cuda.empty_cache()``."""
        self._event(self.recording, Kind.EMPTY_CACHE)

    def reset_peak(self) -> None:
        """Record that peaks count from here."""
        self._event(self.recording, Kind.RESET_PEAK)

    def key_of(self, tensor: torch.Tensor) -> int | None:
        """The key of the device storage that holds ``tensor``, if it is alive and on the device."""
        found = self._live.get(_plain(tensor).untyped_storage()._cdata)
        return None if found is None or found[2] is not self.recording else found[0]

    def categorize(self, tensor: torch.Tensor, category: str) -> None:
        """Say what the storage of ``tensor`` is, for the terms."""
        found = self._live.get(_plain(tensor).untyped_storage()._cdata)
        if found is not None:
            found[2].allocations[found[0]].category = category

    def allocate(self, size: int, operation: str, category: str = "") -> Callable[[], None]:
        """Allocate ``size`` bytes that no tensor holds; returns what frees them."""
        recording, layer = self.recording, self.layer
        key = self._allocation(recording, size, operation, layer, category)
        return lambda: self._event(recording, Kind.FREE, key, layer=self._label(layer))

    def is_host(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is memory of the host."""
        found = self._live.get(tensor.untyped_storage()._cdata)
        return found is not None and found[2] is self.host

    def move_to_host(self, tensor: torch.Tensor, category: str = "") -> torch.Tensor:
        """Say that the storage of ``tensor`` is on the host, not on the device; returns ``tensor``."""
        storage = _plain(tensor).untyped_storage()
        address = storage._cdata
        found = self._live.get(address)
        if found is not None and found[2] is self.host:
            return tensor
        layer = self._layer_of(tensor)
        if found is not None:
            self._released(address)
            self._refs.pop(address)
        self._add(storage, "host", layer, category, self.host)
        return tensor

    def copy_to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a host tensor on the device, of the same layer."""
        self.paused += 1
        try:
            copy = tensor.clone()
        finally:
            self.paused -= 1
        self._add(_plain(copy).untyped_storage(), "to device", self._layer_of(tensor), "", self.recording)
        return copy

    def gradient_ready(self, parameter: torch.Tensor) -> None:
        """Record that the gradient of ``parameter`` is complete."""
        self._event(
            self.recording,
            Kind.READY,
            parameter.element_size(),
            parameter.numel() * parameter.element_size(),
            layer=self._label(self._layer_of(parameter)),
        )

    def used_on(self, tensor: torch.Tensor, stream: int) -> None:
        """Record ``tensor.record_stream``: the memory is reused only when ``stream`` is done with it."""
        key = self.key_of(tensor)
        if key is not None:
            self._event(self.recording, Kind.RECORD, key, stream=stream, layer=self._label(self._layer_of(tensor)))

    @contextmanager
    def on_stream(self, stream: int) -> Iterator[None]:
        """Allocate on another stream, whose blocks the main one cannot take."""
        outer, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = outer

    @contextmanager
    def making_on_host(self) -> Iterator[None]:
        """What is made is made on the host."""
        outer, self._target = self._target, self.host
        try:
            yield
        finally:
            self._target = outer

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not record: for work that happens on the host, or not at all."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    # ------------------------------------------------------------------ torch's side

    def __enter__(self) -> Recorder:
        original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> object:
            found = self._live.get(storage._cdata)
            result = original(storage, size)
            if found is not None or not self.paused:
                self._resized(storage, found)
            return result

        torch.UntypedStorage.resize_ = resize

        def undo() -> None:
            torch.UntypedStorage.resize_ = original

        self._undo_resize = undo
        super().__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        if self._undo_resize is not None:
            self._undo_resize()
        self._closed = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first to its local tensors: the wrapper's storage is no memory
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        known = kernels.answer(func, args)
        if known is not None:
            return known
        if func is kernels.INDEX and kernels.is_mask(args[1]):
            args = (args[0], self._positions(args[1]), *args[2:])
        if func is kernels.ADD and self._accumulates(args):
            args[0].add_(args[1])
            return args[0]
        return self._run(func, args, kwargs)

    # ------------------------------------------------------------------ inside

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation and record what it makes, holds in passing, and costs."""
        on_host = self._on_host(args, kwargs)
        frees = [self.allocate(size, func._schema.name, "scratch") for size in kernels.before(func, args, kwargs)]
        out = func(*args, **kwargs)
        if func is _FROM_PYTHON:
            self._ignore(out)
            return out
        leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"]
        on_host = on_host or any(leaf.device == HOST for leaf in leaves)
        recording = self.host if on_host else self._target
        layers = self._layers_of(args) if self.layer == NO_LAYER else [self.layer]
        for index, tensor in enumerate(leaves):
            layer = layers[min(index, len(layers) - 1)]
            self._add(tensor.untyped_storage(), func._schema.name, layer, "", recording)
        if not on_host:
            self._workspace(func, args)
            self._scratch(func, args, kwargs, out, layers[0])
            self.recording.count(self._label(layers[0]), self.phase, kernels.cost(func, args, out))
        for free in frees:
            free()
        return out

    def _ignore(self, tensor: torch.Tensor) -> None:
        """Know a storage, so that nothing made of it is counted, without counting it."""
        storage = tensor.untyped_storage()
        reference = _StorageRef(storage, self._collected)
        reference.address = storage._cdata
        self._refs[storage._cdata] = reference

    def _positions(self, indices: Any) -> list[torch.Tensor]:
        """A boolean mask as positions, as the device looks them up: of every element, since nothing can be read."""
        mask = indices[0]
        found = torch.empty((mask.numel(), mask.dim()), dtype=torch.long)
        self._add(found.untyped_storage(), "aten::nonzero", self.layer)
        return [*found.unbind(1), *indices[1:]]

    def _accumulates(self, args: Any) -> bool:
        """Whether this addition is autograd summing two gradients, which it does in place on a device.

        On fake tensors, a subclass, the engine adds out of place (torch/csrc/autograd/input_buffer.cpp: tensor
        subclasses are excluded); on a device it repurposes the sum so far if nothing else holds it.
        """
        if not (self.in_backward and _called_by_engine()):
            return False
        first, second = args[0], args[1]
        if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
            return False
        same = first.shape == second.shape and first.dtype == second.dtype and first.is_contiguous()
        return bool(same and torch._C._storage_Use_Count(first.untyped_storage()._cdata) <= kernels.SOLE_OWNER)

    def _workspace(self, func: Any, args: Any) -> None:
        """cuBLAS takes a workspace at a thread's first product; forward and backward are two threads."""
        if func not in kernels.MATRIX_PRODUCTS or not self.device.workspace_bytes:
            return
        lt = kernels.with_bias(func, args)
        if (lt, self.in_backward) not in self._handles:
            self._handles.add((lt, self.in_backward))
            size = kernels.LT_WORKSPACE_BYTES if lt else self.device.workspace_bytes
            self._allocation(self.recording, size, "cublas", NO_LAYER, "workspace")

    def _scratch(self, func: Any, args: Any, kwargs: Any, out: Any, layer: int) -> None:
        keys = [
            self._allocation(self.recording, size, func._schema.name, layer, "scratch")
            for size in kernels.scratch(func, args, kwargs, out, self.device)
            if size
        ]
        for key in reversed(keys):
            self._event(self.recording, Kind.FREE, key, layer=self._label(layer))

    def _on_host(self, args: Any, kwargs: Any) -> bool:
        """An operation fed by host tensors alone gives a host tensor."""
        if not self.host.allocations:
            return False
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim() > 0]
        return bool(inputs) and all(self.is_host(tensor) and tensor.device != HOST for tensor in inputs)

    def _layers_of(self, args: Any) -> list[int]:
        """Outside the layers: the layer each output belongs to, as far as the inputs tell."""
        first = args[0] if args else None
        if isinstance(first, (list, tuple)) and first and isinstance(first[0], torch.Tensor):
            return [self._layer_of(tensor) for tensor in first]
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        if tensors:
            self._recent = max(self._layer_of(tensor) for tensor in tensors)
        elif self.phase is not Phase.OPTIMIZER:
            return [NO_LAYER]
        return [self._recent]  # an optimizer that makes a state out of nothing makes it for the parameter at hand

    def _layer_of(self, tensor: torch.Tensor) -> int:
        found = self._live.get(_plain(tensor).untyped_storage()._cdata)
        return NO_LAYER if found is None else found[1]

    def _add(
        self,
        storage: torch.UntypedStorage,
        operation: str,
        layer: int,
        category: str = "",
        recording: Recording | None = None,
    ) -> int | None:
        address = storage._cdata
        if address in self._refs:
            return None
        size = storage.nbytes()
        recording = recording or self._target
        reference = _StorageRef(storage, self._collected)
        reference.address = address
        self._refs[address] = reference
        if not size:
            return None
        key = self._allocation(recording, size, operation, layer, category)
        self._live[address] = (key, layer, recording)
        return key

    def _allocation(self, recording: Recording, size: int, operation: str, layer: int, category: str) -> int:
        key = len(recording.allocations)
        module = self.modules[-1] if self.modules else ""
        recording.allocations.append(Allocation(size, operation, module, self.phase, layer, self.stream, category))
        self._event(recording, Kind.ALLOC, key, size, self.stream, layer=self._label(layer))
        return key

    def _label(self, layer: int) -> Label:
        """The segment an event belongs to: the running layer, or outside the layers the storage's own."""
        return self.layer if self.layer != NO_LAYER else layer

    def _collected(self, reference: _StorageRef) -> None:
        self._refs.pop(reference.address, None)
        if not self._closed:
            self._released(reference.address)

    def _released(self, address: int) -> None:
        found = self._live.pop(address, None)
        if found is not None:
            key, layer, recording = found
            self._event(recording, Kind.FREE, key, layer=self._label(layer))

    def _resized(self, storage: torch.UntypedStorage, found: tuple[int, int, Recording] | None) -> None:
        """FSDP2 frees and refills its gathered parameters by resizing their storage, which no operation tells."""
        address = storage._cdata
        layer = found[1] if found is not None else self.layer
        self._released(address)
        if storage.nbytes():
            self._refs.pop(address, None)
            self._add(storage, "resize_", layer, "gathered parameters")

    def _event(
        self, recording: Recording, kind: Kind, key: int = 0, size: int = 0, stream: int = 0, layer: Label = NO_LAYER
    ) -> None:
        recording.events.append(Event(kind, key, size, stream))
        recording.labels.append(layer)
        recording.loose.append(self.layer == NO_LAYER)


def _called_by_engine() -> bool:
    """Whether the running operation was called by autograd's engine itself, not by Python code below it."""
    frame = sys._getframe(3)
    while frame.f_code.co_name in _WRAPPERS and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_name == _ENGINE


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The local tensor of a DTensor, else ``tensor``."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
