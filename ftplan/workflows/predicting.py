"""Ask a trained model, and the base it was trained from, what they make of a data set."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from pydantic import ValidationError

from ftplan.errors import InputError
from ftplan.launcher import data, data_sources
from ftplan.launcher.events import Noted
from ftplan.launcher.job import DataSource, DeviceKind
from ftplan.launcher.predict_job import Metric, Predicted, PredictEvent, PredictJob, Scores
from ftplan.launcher.predicting import run_predict
from ftplan.profiles.detect import detect_gpus
from ftplan.workflows.inputs import input_error
from ftplan.workflows.running import cpu_threads
from ftplan.workflows.trained import Trained, find_trained

PREDICTIONS: Final = "predictions.jsonl"
DEFAULT_MAX_LENGTH: Final = 2048
"""Tokens of a row where no run says how many it was trained with."""


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """How to predict. ``data_form`` as for a run; ``out`` is the file of predictions, None for the usual place."""

    data: tuple[str, ...]
    datasets: tuple[str, ...] = ()
    skip_bad_rows: bool = False
    data_form: str = "auto"
    base: str | None = None
    metrics: tuple[str, ...] = get_args(Metric)
    before: bool = True
    limit: int = 100
    max_new_tokens: int = 128
    max_length: int | None = None
    batch_size: int = 8
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Scores before and after the training over ``rows`` of ``available`` ones; ``predictions`` is the file."""

    trained: str
    base: str | None
    data: tuple[str, ...]
    rows: int
    available: int
    before: Scores | None
    after: Scores
    predictions: str
    device: str
    dtype: str
    seconds: float
    notes: tuple[str, ...] = ()


def predict(given: Path, settings: PredictSettings, on_event: Callable[[PredictEvent], None]) -> Prediction:
    """Predict with what ``given`` (a run, an adapter or a model) holds.

    Raises InputError for what cannot be loaded or read, RunFailedError if the process that predicts dies.
    """
    trained = find_trained(given, settings.base)
    job = _job(trained, given, settings)
    told: list[PredictEvent] = []

    def take(event: PredictEvent) -> None:
        told.append(event)
        on_event(event)

    for note in _notes(trained, settings):
        take(Noted(note))
    began = time.monotonic()
    device: DeviceKind = "cuda" if detect_gpus() else "cpu"
    run_predict(job, device, cpu_threads(1), take)
    ended = next(event for event in told if isinstance(event, Predicted))
    return Prediction(
        trained=job.trained,
        base=job.base.location if job.base is not None else None,
        data=job.data.paths,
        rows=ended.rows,
        available=ended.available,
        before=ended.before,
        after=ended.after,
        predictions=job.out,
        device=ended.device,
        dtype=ended.dtype,
        seconds=time.monotonic() - began,
        notes=tuple(event.message for event in told if isinstance(event, Noted)),
    )


def _job(trained: Trained, given: Path, settings: PredictSettings) -> PredictJob:
    if trained.is_adapter and trained.base is None:
        raise InputError("nothing says which model the adapter belongs to", hint="name it with --base", field="base")
    return PredictJob.model_validate(
        {
            "trained": str(trained.folder),
            "is_adapter": trained.is_adapter,
            "base": trained.base,
            "tokenizer": trained.tokenizer,
            "training": trained.training,
            "data": _data(settings),
            "metrics": _metrics(settings.metrics),
            "before": settings.before,
            "limit": settings.limit,
            "max_new_tokens": settings.max_new_tokens,
            "max_length": settings.max_length or _trained_length(trained),
            "batch_size": settings.batch_size,
            "out": str(_writable(_out(trained, given, settings.out).absolute())),
        }
    )


def _data(settings: PredictSettings) -> DataSource:
    """The data, read once here: a mistake in it is told before anything heavy is loaded."""
    try:
        source = data_sources.data_source(
            settings.data, settings.datasets, form=settings.data_form, skip_bad_rows=settings.skip_bad_rows
        ).absolute()
    except ValidationError as error:
        raise input_error(error) from error
    if source.hub_sets:
        raise InputError("predictions are made of local files", hint="--data FILE.jsonl", field="data")
    data.load(source)
    return source


def _metrics(names: Sequence[str]) -> tuple[str, ...]:
    valid = get_args(Metric)
    unknown = [name for name in names if name not in valid]
    if unknown or not names:
        shown = repr(unknown[0]) if unknown else "''"
        raise InputError(f"unknown metric {shown}", hint=f"valid: {', '.join(valid)}", field="metrics")
    if "rouge" in names and importlib.util.find_spec("rouge_score") is None:
        hint = "pip install 'ftplan[predict]', or --metrics loss,exact_match"
        raise InputError("ROUGE needs the library rouge-score", hint=hint, field="metrics")
    return tuple(dict.fromkeys(names))


def _trained_length(trained: Trained) -> int:
    return trained.training.config.seq_len if trained.training is not None else DEFAULT_MAX_LENGTH


def _out(trained: Trained, given: Path, out: Path | None) -> Path:
    """A run keeps its predictions; of anything else they are put where the user is."""
    if out is not None:
        return out
    return given / PREDICTIONS if trained.training is not None else Path(PREDICTIONS)


def _writable(out: Path) -> Path:
    """``out``; raises InputError now where it cannot be written after minutes of work."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            return out
    except OSError as error:
        hint = "name a file in a folder that can be written"
        raise InputError(f"cannot write to {out.parent}: {error.strerror}", hint=hint, field="out") from error


def _notes(trained: Trained, settings: PredictSettings) -> list[str]:
    notes = [trained.note] if trained.note else []
    if settings.before and trained.base is None:
        notes.append("nothing says what the model was trained from: name it with --base to see the scores before")
    return notes
