"""Faults of one rank, injected from outside: Python imports this module at its start where it lies on PYTHONPATH.

``FTPLAN_FAULT`` is ``KIND:STEP[:RANK]``; with ``FTPLAN_FAULT_ONCE`` (a path) only the first to meet it makes it.
Nothing of ftplan knows of this: the trainer's methods are wrapped when its module has been imported.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

TRAINER = "ftplan.launcher.train.trainer"
SAMPLES_THAT_FIT = 4
LOOKED_FOR = 1.0
"""Seconds in which a worker certainly looks for SIGTERM: its guard does so several times a second."""


def fault(trainer, inputs):
    """Make the fault, if this is its step and rank; returns whether the loss must become a NaN."""
    kind, step, *rank = os.environ["FTPLAN_FAULT"].split(":")
    if trainer.state.global_step + 1 < int(step) or int(os.environ.get("RANK", "0")) != int(*rank or (0,)):
        return False
    if kind == "memory":
        import torch

        if len(inputs["input_ids"]) > SAMPLES_THAT_FIT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return False
    once = os.environ.get("FTPLAN_FAULT_ONCE")
    if once:
        if Path(once).exists():
            return False
        Path(once).touch()
    if kind.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, kind))
        time.sleep(LOOKED_FOR if kind == "SIGTERM" else 60)
    elif kind == "bug":
        raise RuntimeError("a bug of the model's code")
    elif kind == "hang":
        time.sleep(3600)
    return kind == "nan"


def ruins_weights(trainer):
    """Whether this is the last micro-batch of the step whose optimizer makes a weight no number."""
    kind, step = os.environ.get("FTPLAN_FAULT", "none:0").split(":")[:2]
    last = trainer.accelerator.gradient_state.sync_gradients
    return kind == "weights" and last and trainer.state.global_step + 1 == int(step)


def wrap(module):
    """Put `fault` before each loss, a full disk or an end after a save, and an end before the result is written."""
    original = module.PlannedTrainer.compute_loss
    saving = module.PlannedTrainer._save_checkpoint
    saving_model = module.PlannedTrainer.save_model

    def compute_loss(self, model, inputs, *given, **named):
        ruined = fault(self, inputs) if "FTPLAN_FAULT" in os.environ and self.model.training else False
        result = original(self, model, inputs, *given, **named)
        if ruins_weights(self):
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(float("nan"))
        return result * float("nan") if ruined else result

    def save_checkpoint(self, *given, **named):
        saving(self, *given, **named)
        kind, step = os.environ.get("FTPLAN_FAULT", "none:0").split(":")[:2]
        if kind == "disk" and self.state.global_step >= int(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind == "unsealed" and self.state.global_step >= int(step):
            os.kill(os.getpid(), signal.SIGKILL)

    def save_model(self, output_dir=None, *given, **named):
        if os.environ.get("FTPLAN_FAULT", "").startswith("export") and "final" in Path(output_dir or "").name:
            os.kill(os.getpid(), signal.SIGKILL)
        saving_model(self, output_dir, *given, **named)

    module.PlannedTrainer.compute_loss = compute_loss
    module.PlannedTrainer.save_model = save_model
    module.PlannedTrainer._save_checkpoint = save_checkpoint


class Finder(importlib.abc.MetaPathFinder):
    """Finds the trainer's module as always, and wraps it once it has been executed."""

    def find_spec(self, name, path=None, target=None):
        if name != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            wrap(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
