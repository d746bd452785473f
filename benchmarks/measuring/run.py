"""One case in this process: one row of ``benchmarks/data``. The order of what is done decides what is measured."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, Trainer

from benchmarks.measuring.arguments import training_arguments
from benchmarks.measuring.case import Case
from benchmarks.measuring.device import Device, device_of
from benchmarks.measuring.model import base_model, element_count, model_config, trainable_model
from benchmarks.measuring.tokens import evaluation_tokens, training_tokens
from benchmarks.measuring.trainers import Marking, Marks, trainer_for

Row = dict[str, Any]


def measured(case: Case, *, base_alloc: int | None = 0) -> Row:
    """The row of ``case``; one with ``error`` and ``trace`` if it could not run. Out of memory is no error.

    ``base_alloc`` is what earlier cases left allocated in this process.
    """
    rank, world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    row: Row = {"id": case.id, "gpus": world_size, "rank": rank, "case": case.as_row(), "base_alloc": base_alloc}
    row["expandable_segments"] = expandable_segments()
    try:
        return row | _run(case, device_of(rank), world_size)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:600]
        return row | {"error": problem, "trace": traceback.format_exc()[-2500:]}


def expandable_segments() -> bool:
    """Whether the environment gives the allocator expandable segments."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    return any("expandable_segments:true" in os.environ.get(name, "").lower() for name in names)


def _run(case: Case, device: Device, world_size: int) -> Row:
    device.select()
    if case.cap_gib is not None:
        device.cap(case.cap_gib)
    config = model_config(case)
    row: Row = {"gpu": device.name, "context": device.used()}
    torch.backends.cuda.enable_cudnn_sdp(not case.flash)
    arguments = training_arguments(case, world_size, on_cpu=device.place == "cpu")
    model = base_model(case, config, device.place)
    row["params"] = element_count(model)
    model = trainable_model(case, model, device.place)
    row["trainable"] = element_count(model, trainable=True)
    gc.collect()
    device.give_back()
    device.reset_peaks()
    row["static_alloc"] = device.allocated()
    tokens = training_tokens(case, config, world_size)
    marks = Marks()
    try:
        trainer = trainer_for(case, model, arguments, tokens, Marking(marks, device, world_size))
        trainer.train()
        row["ok"] = True
        _evaluate_and_save(row, case, trainer, config, device, world_size)
    except torch.OutOfMemoryError as error:
        row |= {"ok": False, "oom": str(error)[:400]}
    return row | {
        "prepared_alloc": marks.prepared_alloc,
        "peak_alloc": device.peak_allocated(),
        "peak_reserved": device.peak_reserved(),
        "device_used_end": device.used(),
        "steps": marks.steps,
        "step_s": marks.step_seconds,
        "host_peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _evaluate_and_save(
    row: Row, case: Case, trainer: Trainer, config: PretrainedConfig, device: Device, world_size: int
) -> None:
    """Put the peaks of an evaluation and of a save into ``row``, and before them those of the training, which they end.

    Into the row itself: what was measured stays there if a later phase has no memory.
    """
    if case.eval or case.save:
        row |= {"train_peak_alloc": device.peak_allocated(), "train_peak_reserved": device.peak_reserved()}
    if case.eval:
        device.reset_peaks()
        trainer.evaluate(evaluation_tokens(case, config, world_size))
        row["eval_peak_alloc"] = device.peak_allocated()
    if case.save:
        device.reset_peaks()
        trainer.save_model(str(Path(tempfile.gettempdir()) / "out_save"))  # one folder for all ranks
        row["save_peak_alloc"] = device.peak_allocated()
