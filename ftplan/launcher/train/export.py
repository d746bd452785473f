"""Writes the result of a run as a folder that ``from_pretrained`` reads, whatever the sharding."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ftplan.files import publish
from ftplan.launcher.train.control import Control
from ftplan.launcher.train.trainer import PlannedTrainer


def export(trainer: PlannedTrainer, folder: Path, control: Control, *, adapters: bool) -> None:
    """Save the adapters, or the whole model, and the tokenizer to ``folder``; every rank must call it.

    The folder appears when it is complete.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if control.keeps_files:
        shutil.rmtree(partial, ignore_errors=True)
    control.barrier()
    _save(trainer, partial, is_main=control.is_main, adapters=adapters)
    control.barrier()
    if control.keeps_files:
        shutil.rmtree(folder, ignore_errors=True)
        publish(partial, folder)


def _save(trainer: PlannedTrainer, folder: Path, *, is_main: bool, adapters: bool) -> None:
    """Under FSDP the trainer writes nothing of use: its sharded checkpoints hold no adapter file."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model(str(folder))
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters)
    state = get_model_state_dict(trainer.model, options=options)
    if is_main:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(folder), state_dict=state)
        trainer.processing_class.save_pretrained(str(folder))
