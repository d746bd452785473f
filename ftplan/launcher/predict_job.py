"""What a prediction is asked for, and what it tells. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ftplan.launcher.events import Failed, Noted
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.spec import PositiveInt, Spec

Metric = Literal["loss", "exact_match", "rouge"]
Side = Literal["before", "after"]


class PredictJob(Spec):
    """Rows to be predicted by a trained model, and by the base it was trained from.

    ``trained`` is the folder of an adapter on ``base``, or of a whole model. ``base`` is None where nothing is to be
    compared with a whole model. ``training`` is the run's job, which says how the base was loaded. ``max_length``
    tokens of a row are read; ``out`` is the file of predictions, JSON Lines.
    """

    trained: str = Field(min_length=1)
    is_adapter: bool
    base: Source | None
    tokenizer: Source
    training: TrainJob | None = None
    data: DataSource
    metrics: tuple[Metric, ...] = Field(strict=False, min_length=1)
    before: bool = True
    limit: PositiveInt
    max_new_tokens: PositiveInt
    max_length: PositiveInt
    batch_size: PositiveInt
    out: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's figures on all rows; None for what was not asked for, or has no meaning on this data.

    Attributes:
        loss: mean negative log likelihood of a token of the completions, in nats; each token counts the same.
        perplexity: e to the power of it.
        tokens: tokens of the completions.
        exact_match: part of the predictions that are the reference, but for space around it.
        rouge1: mean F-measure of shared words, as `rouge-score` counts them, without stemming.
        rouge2: of shared pairs of words.
        rouge_l: of the longest common subsequence.

    """

    loss: float | None = None
    perplexity: float | None = None
    tokens: int = 0
    exact_match: float | None = None
    rouge1: float | None = None
    rouge2: float | None = None
    rouge_l: float | None = None


@dataclass(frozen=True, slots=True)
class PredictProgressed:
    """So many rows of ``total`` are done, of one model's losses or predictions."""

    side: Side
    what: Literal["loss", "predictions"]
    done: int
    total: int
    event: Literal["progressed"] = "progressed"


@dataclass(frozen=True, slots=True)
class Predicted:
    """The end: scores over ``rows`` of the ``available`` ones. ``device`` is where the models ran."""

    rows: int
    available: int
    before: Scores | None
    after: Scores
    device: str
    dtype: str
    event: Literal["predicted"] = "predicted"


PredictEvent = PredictProgressed | Predicted | Noted | Failed


@cache
def _adapter() -> TypeAdapter[PredictEvent]:
    return TypeAdapter(Annotated[PredictEvent, Field(discriminator="event")])


def to_line(event: PredictEvent) -> bytes:
    """``event`` as one JSON line."""
    return _adapter().dump_json(event) + b"\n"


def from_line(line: bytes) -> PredictEvent:
    """The event that `to_line` wrote; raises pydantic's ValidationError for anything else."""
    return _adapter().validate_json(line)
