"""Finished runs on record: what later plans for the same devices go by."""

from __future__ import annotations

from datetime import UTC, datetime

from ftplan import __version__
from ftplan.errors import InputError
from ftplan.profiles import store
from ftplan.profiles.calibration import RecordedRun, RunFigures
from ftplan.results import Measured, RunRecord


def recorded(record: RunRecord, *, ranks: int) -> str:
    """Keep a finished run; returns a note where that is impossible, because the training itself succeeded.

    One that was profiled is no example: the profiler's time and host memory are in its figures.
    """
    if record.status != "finished" or not record.basis.devices or record.profiles:
        return ""
    try:
        store.keep_run(recorded_run(record, ranks))
    except InputError as error:
        return f"later plans will not go by this run: {error.message}"
    return ""


def recorded_run(record: RunRecord, ranks: int) -> RecordedRun:
    """``record`` as it is kept: with the prediction as it was before earlier runs corrected it."""
    basis, config = record.basis, record.config
    return RecordedRun(
        run_id=record.run_id,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ftplan=__version__,
        devices=basis.devices,
        calibrated_at=tuple(one.measured_at for one in basis.calibrations),
        ranks=ranks,
        model=config.model,
        method=config.method,
        sharding=config.sharding,
        offload=config.offload,
        predicted=_uncorrected(record),
        measured=_figures(record.measured),
        versions=record.versions,
    )


def _uncorrected(record: RunRecord) -> RunFigures:
    told, basis = _figures(record.predicted), record.basis
    return RunFigures(
        process_bytes=None if told.process_bytes is None else told.process_bytes - basis.excess_bytes,
        host_bytes=told.host_bytes,
        step_seconds=None if told.step_seconds is None else told.step_seconds / basis.step_ratio,
    )


def _figures(figures: Measured) -> RunFigures:
    return RunFigures(figures.peak_process_bytes, figures.host_bytes, figures.step_seconds)
