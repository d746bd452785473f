"""Trace and digest: here, or as ``python -m ftplan.estimators.trace.worker`` with settings on standard input."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import replace

from ftplan.errors import FtplanError
from ftplan.estimators.trace.buckets import with_buckets
from ftplan.estimators.trace.digest import Digest, Shape, digest
from ftplan.estimators.trace.expand import NotExpandableError, expand
from ftplan.estimators.trace.record import Recording
from ftplan.estimators.trace.settings import TraceSettings, micro_batches
from ftplan.estimators.trace.tracing import Traced, trace
from ftplan.results import Phase, from_json, to_json


def digested(settings: TraceSettings) -> Digest:
    """Trace ``settings`` here: a few layers that stand for all, or every layer where they cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' advice to whoever trains
        traced = trace(settings)
        note = ""
        try:
            device, host = _expanded(traced)
        except NotExpandableError as error:
            note = f"every layer was traced: {error}"
            traced = trace(replace(settings, whole=True))
            device, host = traced.device, traced.host
    if settings.config.sharding == "ddp":
        device = with_buckets(device)
    shape = Shape(traced.total_params, traced.trainable_params, len(traced.reduction.kept), traced.layers, note)
    return digest(device, host, shape, settings.config, repeated=_repeated(settings))


def _repeated(settings: TraceSettings) -> dict[Phase, float]:
    """Of what was recorded over some steps and micro-batches, the part that belongs to one whole step."""
    accumulation = settings.config.accumulation
    passes = accumulation / micro_batches(accumulation) / settings.steps
    return {
        Phase.FORWARD: passes,
        Phase.LOSS: passes,
        Phase.BACKWARD: passes,
        Phase.OPTIMIZER: 1.0 / settings.steps,
    }


def _expanded(traced: Traced) -> tuple[Recording, Recording]:
    copies, lower = traced.reduction.copies, traced.reduction.lower
    if copies:
        _check_layers_hold_something(traced, lower)
    return expand(traced.device, copies, lower), expand(traced.host, copies, lower)


def _check_layers_hold_something(traced: Traced, lower: int) -> None:
    """The middle layers must be known to hold memory to the end, their weights at least, and equally much."""
    held = [traced.device.held_bytes(unit) + traced.host.held_bytes(unit) for unit in (lower, lower + 1)]
    if not held[0] or held[0] != held[1]:
        raise NotExpandableError(f"two middle layers hold {held[0]} and {held[1]} bytes at the end")


def main() -> int:
    """Read settings, write the digest, both as JSON; a user's mistake is written as such."""
    settings = from_json(TraceSettings, sys.stdin.buffer.read())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    try:
        answer.write(to_json(digested(settings)))
    except FtplanError as error:
        answer.write(json.dumps({"error": {"message": error.message, "hint": error.hint, "field": error.field}}))
    answer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
