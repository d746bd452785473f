"""Looks into a few steps on request: a FLOP counter over one, or the PyTorch profiler over some.

Both watch what is computed and change nothing about it; the steps they watch are slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftplan.files import sync
from ftplan.launcher.events import FlopsCounted, Noted, Profiled
from ftplan.launcher.train.callbacks import Setting
from ftplan.launcher.train.progress import Seen
from ftplan.launcher.train.trainer import PlannedTrainer

WARM_UP_STEPS: Final = 2
"""Steps of an attempt before an instrument looks: kernels are chosen and memory is first reserved in them."""

PROFILED_STEPS: Final = 3
"""Steps in a trace: one of a large model is hundreds of megabytes already."""

MEMORY_EVENTS: Final = 200_000
"""Allocations and releases that a memory snapshot keeps, the last ones."""

_ATEN: Final = torch.ops.aten
_FORMULAS: Final[Mapping[Any, Callable[..., int]]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""Torch's own, by operation; torch 2.15 leaves out attention on CPUs, which has the GPU kernel's shapes."""


class CountingMode(TorchDispatchMode):  # type: ignore[misc]
    """Counts the FLOPs of every operation as it is.

    `torch.utils.flop_counter.FlopCounterMode` computes some operations from their parts to look into them, such as the
    gradient of SiLU (torch 2.15): the results then differ in their last digits from those of a run that is not counted.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, _types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Compute ``func`` and count it."""
        result = func(*args, **(kwargs or {}))
        operation = getattr(func, "_overloadpacket", func)
        if operation in _FORMULAS:
            self.flops[str(operation)] += _FORMULAS[operation](*args, **(kwargs or {}), out_val=result)
        return result


class FlopCounter(TrainerCallback):  # type: ignore[misc]
    """Counts the FLOPs of one step on every rank, after the warm-up or in the last step of a shorter attempt."""

    def __init__(self, setting: Setting, trainer: PlannedTrainer) -> None:
        self._setting = setting
        self._trainer = trainer
        self._counting: CountingMode | None = None
        self._before = Seen()
        self._step = 0

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """Choose the step."""
        self._step = min(state.global_step + WARM_UP_STEPS + 1, state.max_steps)

    def on_step_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """Count from here."""
        if state.global_step + 1 == self._step:
            self._before = self._trainer.seen
            self._counting = CountingMode()
            self._counting.__enter__()

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        """Count to here, and tell the sum of all ranks."""
        if self._counting is None:
            return
        counting, self._counting = self._counting, None
        counting.__exit__(None, None, None)
        seen, before = self._trainer.seen, self._before
        done = Seen(seen.tokens - before.tokens, seen.token_pairs - before.token_pairs)
        ranks = self._setting.control.gather((counting.flops, done))
        by_operation = sum((flops for flops, _ in ranks), Counter())
        tokens = sum(one.tokens for _, one in ranks)
        token_pairs = sum(one.token_pairs for _, one in ranks)
        self._setting.report(
            FlopsCounted(
                step=state.global_step,
                tokens=tokens,
                counted=by_operation.total(),
                by_operation=dict(by_operation.most_common()),
                model=self._setting.job.model_flops(tokens, token_pairs),
            )
        )


class ProfiledSteps(TrainerCallback):  # type: ignore[misc]
    """A trace of a few steps of every rank, and on GPUs a snapshot of memory with the stacks that took it.

    They are written when the steps are done, or the training ends among them; nothing is recorded before or after.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._profiler: profile | None = None
        self._first = 0
        self._paths: tuple[str, ...] = ()

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """Choose the steps; the last of the warm-up is traced and thrown away, as the profiler wants it."""
        self._first = state.global_step + WARM_UP_STEPS + 1
        steps = min(PROFILED_STEPS, state.max_steps - self._first + 1)
        if steps < 1:
            self._setting.report(Noted(f"nothing is profiled: it begins after {WARM_UP_STEPS} steps"))
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=WARM_UP_STEPS - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
        )
        self._profiler.start()

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object) -> None:
        """Go on to the next step; after the last of them tell where the trace is."""
        if self._profiler is None:
            return
        if state.global_step == self._first - 1 and torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS, stacks="python")
        self._profiler.step()
        if self._paths:
            self._end(state.global_step)
            self._setting.clock.exclude()

    def on_train_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: object
    ) -> None:
        """The training was stopped among the steps."""
        if self._profiler is not None:
            self._end(state.global_step)

    def _end(self, last: int) -> None:
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        paths = tuple(path for paths in self._setting.control.gather(self._paths) for path in paths)
        if paths:
            self._setting.report(Profiled(self._first, last, paths))

    def _write(self, profiler: profile) -> None:
        name = f"from-step-{self._first}-rank-{self._setting.control.rank}"
        paths = [self._written(f"{name}.trace.json.gz", profiler.export_chrome_trace)]
        if torch.cuda.is_available():
            paths.append(self._written(f"{name}.memory.pickle", torch.cuda.memory._dump_snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)
        self._paths = tuple(paths)

    def _written(self, name: str, write: Callable[[str], object]) -> str:
        """Let ``write`` fill a file that appears when it is complete; torch compresses by how the name ends."""
        folder: Path = self._setting.run.profile
        folder.mkdir(parents=True, exist_ok=True)
        partial, path = folder / f".{name}", folder / name
        write(str(partial))
        sync(partial)
        partial.replace(path)
        sync(folder)
        return str(path)
