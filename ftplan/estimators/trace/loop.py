"""The training loop of a trace: what transformers' Trainer does, step by step, and where the layers are."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32

from ftplan.estimators.trace.building import DTYPES, Built
from ftplan.estimators.trace.losses import loss_of
from ftplan.estimators.trace.optimizers import make_optimizer
from ftplan.estimators.trace.record import NO_LAYER
from ftplan.estimators.trace.recorder import Recorder
from ftplan.estimators.trace.settings import TraceSettings, micro_batches
from ftplan.results import Phase


class PlainLoop:
    """One process with the whole model, and the base of the sharded ones.

    ``called`` is what is called for a forward; ``module`` holds the parameters as the optimizer sees them.
    """

    def __init__(self, built: Built, settings: TraceSettings, recorder: Recorder) -> None:
        self.built, self.settings, self.recorder = built, settings, recorder
        self.module: torch.nn.Module = built.model
        self.called: Callable[..., Any] = self._autocast(built.model.forward)
        self.prepare()
        self.parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(settings.config, self.module, recorder)

    def prepare(self) -> None:
        """Wrap the model; nothing to do for one process."""

    def _autocast(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """accelerate's mixed precision around the model's forward, with its outputs converted to fp32."""
        precision = self.settings.config.precision
        if precision == "none":
            return forward

        def cast(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", dtype=DTYPES[precision], cache_enabled=True):
                return forward(*args, **kwargs)

        return convert_outputs_to_fp32(cast) if self.settings.stack.casts_outputs_to_fp32 else cast

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of one micro-batch, through the loss path of the configuration."""
        return loss_of(self.called, batch, self.settings.config)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Gradients of ``loss``, scaled by a gradient scaler in fp16."""
        del last
        if self.settings.config.precision == "fp16":
            loss = loss * self._scale()
        loss.backward()

    def _scale(self) -> torch.Tensor:
        if not hasattr(self, "scale"):
            self.scale = torch.full((), 65536.0)
            self.growth = torch.full((), 0, dtype=torch.int32)
        return self.scale

    def clip(self) -> None:
        """Trainer clips to norm 1 by default, all gradients at once."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)

    def step(self) -> None:
        """Clip, step, and set the gradients to None."""
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None

    def save(self) -> None:
        """What saving takes on the device: nothing where the weights are whole."""


def run(built: Built, settings: TraceSettings, recorder: Recorder, loop: PlainLoop) -> None:
    """The steps of the settings, then an evaluation."""
    with watched(built, recorder):
        for _ in range(settings.steps):
            _step(settings, recorder, loop)
        if settings.evaluates:
            _evaluate(built, settings, recorder, loop)
    recorder.mark(Phase.SAVE)
    loop.save()


def _step(settings: TraceSettings, recorder: Recorder, loop: PlainLoop) -> None:
    config = settings.config
    recorder.mark(Phase.FORWARD)
    batches = [batch(settings) for _ in range(config.accumulation)]  # Trainer takes a step's batches at once
    count = torch.stack([(each["labels"][:, 1:] != -100).sum() for each in batches]).sum()
    for index in range(micro_batches(config.accumulation)):
        each = batches[index]
        recorder.mark(Phase.FORWARD)
        recorder.last_micro_batch = index == micro_batches(config.accumulation) - 1
        loss = loop.forward({**each, "num_items_in_batch": count})
        recorder.mark(Phase.LOSS)
        recorder.in_backward = True
        loop.backward(loss, last=recorder.last_micro_batch)
        recorder.in_backward = False
        recorder.layer = NO_LAYER
        del loss, each
    recorder.mark(Phase.OPTIMIZER)
    for parameter in loop.parameters:
        if parameter.grad is not None:
            recorder.categorize(parameter.grad, "gradients")
    loop.step()
    del batches, count
    _name_states(recorder, loop.optimizer)
    gc.collect()


def _name_states(recorder: Recorder, optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                recorder.categorize(value, "optimizer states")


def _evaluate(built: Built, settings: TraceSettings, recorder: Recorder, loop: PlainLoop) -> None:
    recorder.mark(Phase.EVAL)
    built.model.eval()
    with torch.no_grad():
        loss = loop.forward({**batch(settings), "num_items_in_batch": None})
        del loss
    built.model.train()
    recorder.layer = NO_LAYER


def batch(settings: TraceSettings) -> dict[str, torch.Tensor]:
    """One micro-batch of token ids on the device, with a mask where batches are padded, positions where packed."""
    config = settings.config
    rows, length = config.micro_batch, config.seq_len
    made = {"input_ids": torch.zeros((rows, length), dtype=torch.long)}
    if config.padding:
        made["attention_mask"] = torch.ones((rows, length), dtype=torch.long)
    if config.packing:
        made["position_ids"] = torch.zeros((rows, length), dtype=torch.long)
    return {**made, "labels": torch.zeros((rows, length), dtype=torch.long)}


@contextmanager
def watched(built: Built, recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which layer and module runs, in forward, recomputation and backward."""
    with ExitStack() as stack:
        names = {id(module): name for name, module in built.model.named_modules()}
        for layer, unit in zip(built.layers, built.reduction.units, strict=True):
            last = layer is built.layers[-1]
            stack.callback(layer.register_forward_pre_hook(_entering(recorder, unit), prepend=True).remove)
            stack.callback(layer.register_forward_hook(_leaving(recorder, unit, last=last)).remove)
        hooks = torch.nn.modules.module
        stack.callback(hooks.register_module_forward_pre_hook(_pushing(recorder, names)).remove)
        stack.callback(hooks.register_module_forward_hook(_popping(recorder), always_call=True).remove)
        yield


def _pushing(recorder: Recorder, names: dict[int, str]) -> Callable[..., None]:
    def hook(module: torch.nn.Module, _: Any) -> None:
        recorder.modules.append(names.get(id(module), ""))

    return hook


def _popping(recorder: Recorder) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        recorder.modules.pop()

    return hook


def _entering(recorder: Recorder, unit: int) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any) -> None:
        recorder.layer = unit

    return hook


def _leaving(recorder: Recorder, unit: int, *, last: bool) -> Callable[..., None]:
    """After the forward the layer ends; where its output's gradient comes in, its backward begins."""

    def hook(module: torch.nn.Module, args: Any, out: Any) -> None:
        if recorder.in_backward:  # recomputed: the layer's backward goes on
            return
        hidden = out[0] if isinstance(out, tuple) else out
        if isinstance(hidden, torch.Tensor) and hidden.grad_fn is not None:
            hidden.grad_fn.register_prehook(_arriving(recorder, unit, last=last))
        if last:  # what follows another layer belongs to it until the next one begins
            if recorder.phase is Phase.FORWARD:
                recorder.mark(Phase.LOSS)
            recorder.layer = NO_LAYER

    return hook


def _arriving(recorder: Recorder, unit: int, *, last: bool) -> Callable[[Any], None]:
    def hook(_: Any) -> None:
        recorder.layer = unit
        if last:
            recorder.mark(Phase.BACKWARD)

    return hook
