"""How long the rows of a job are in tokens, beside its cutoff: what ``python -m ftplan.launcher.train.lengths`` tells.

Light: the parent starts that module (`argv`) with the training libraries and reads its one JSON document (`parse`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ftplan.errors import DataError
from ftplan.results import from_json

MODULE: Final = "ftplan.launcher.train.lengths"
SHORTEST_BUCKET: Final = 32


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Lengths in tokens of the rows of a data set, before packing, and what a cutoff of ``cutoff`` tokens takes away.

    ``rows`` are those the trainer gets: where each turn of the assistant becomes a row, these are counted. ``tokens``
    counts whole rows, ``lost_tokens`` what lies beyond the cutoff. ``empty_rows`` have no token left to learn from
    after the cut. ``buckets`` are ``(longest, rows)``: how many rows have at most ``longest`` tokens, and more than the
    bucket before.
    """

    rows: int
    tokens: int
    mean_tokens: float
    longest: int
    cutoff: int
    truncated_rows: int
    lost_tokens: int
    empty_rows: int
    buckets: tuple[tuple[int, int], ...]


def report(rows: Iterable[tuple[int, bool]], cutoff: int) -> LengthReport:
    """The report of ``rows``, each told by its tokens and whether some to learn from are left after the cut."""
    lengths: list[int] = []
    empty = 0
    for length, learns in rows:
        lengths.append(length)
        empty += not learns
    beyond = [length - cutoff for length in lengths if length > cutoff]
    return LengthReport(
        rows=len(lengths),
        tokens=sum(lengths),
        mean_tokens=sum(lengths) / len(lengths) if lengths else 0.0,
        longest=max(lengths, default=0),
        cutoff=cutoff,
        truncated_rows=len(beyond),
        lost_tokens=sum(beyond),
        empty_rows=empty,
        buckets=_buckets(lengths),
    )


def argv(job_file: str) -> list[str]:
    """The command that writes the report of the job in ``job_file`` to stdout."""
    return [sys.executable, "-m", MODULE, job_file]


def parse(document: str | bytes) -> LengthReport:
    """The report in what the command wrote; raises DataError for the problem it tells instead."""
    told: dict[str, Any] = json.loads(document)
    if "error" in told:
        raise DataError(**told["error"])
    return from_json(LengthReport, document)


def _buckets(lengths: list[int]) -> tuple[tuple[int, int], ...]:
    """Counts by powers of two, from `SHORTEST_BUCKET` up to the longest row."""
    if not lengths:
        return ()
    bounds = [SHORTEST_BUCKET]
    while bounds[-1] < max(lengths):
        bounds.append(2 * bounds[-1])
    lower = [-1, *bounds]
    return tuple(
        (high, sum(low < length <= high for length in lengths)) for low, high in zip(lower, bounds, strict=False)
    )
