"""Predicts in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ftplan.launcher.job import DeviceKind, Source
from ftplan.launcher.predict_job import PredictEvent, PredictJob, from_line
from ftplan.launcher.tasks import run_task

MODULE: Final = "ftplan.launcher.train.predict"


def run_predict(job: PredictJob, device: DeviceKind, threads: int, on_event: Callable[[PredictEvent], None]) -> None:
    """Predict as ``job`` says, handing on what the worker tells.

    Raises InputError for what cannot be predicted, and RunFailedError if the worker dies.
    """
    run_task(
        MODULE,
        job,
        device=device,
        threads=threads,
        offline=not any(isinstance(source, Source) and source.kind == "hub" for source in (job.base, job.tokenizer)),
        parse=from_line,
        on_event=on_event,
    )
