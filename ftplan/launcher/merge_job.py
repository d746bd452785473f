"""What a merge is asked for, what it tells while it goes on, and how much memory it may take. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ftplan.launcher.events import Failed, Noted
from ftplan.launcher.job import Source, TrainJob
from ftplan.spec import Spec

MergeDtype = Literal["keep", "bf16", "fp16", "fp32"]


class MergeJob(Spec):
    """An adapter to be added to its base.

    ``out`` is the folder to fill, which is empty. ``tokenizer`` is where the tokenizer's files are, if not beside the
    adapter. ``training`` is the run's job where its base is drawn at random, from the seed. ``max_ram_bytes`` bounds
    the peak resident memory of the process that merges; None lets it take what is fast.
    """

    adapter: str = Field(min_length=1)
    base: Source
    out: str = Field(min_length=1)
    tokenizer: str | None = None
    training: TrainJob | None = None
    max_ram_bytes: Annotated[int, Field(gt=0)] | None = None
    dtype: MergeDtype = "keep"
    max_shard_bytes: Annotated[int, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class MergeStated:
    """What will be done, before it begins: ``peak_bytes`` is the resident memory that is not exceeded."""

    base: str
    changed_weights: int
    weights: int
    written_bytes: int
    files: int
    peak_bytes: int
    event: Literal["stated"] = "stated"


@dataclass(frozen=True, slots=True)
class MergeProgressed:
    """So many bytes of the new weights are written."""

    written_bytes: int
    event: Literal["progressed"] = "progressed"


@dataclass(frozen=True, slots=True)
class MergeEnded:
    """Every file is on disk; ``peak_bytes`` is the process's highest resident memory."""

    peak_bytes: int
    event: Literal["ended"] = "ended"


MergeEvent = MergeStated | MergeProgressed | MergeEnded | Noted | Failed


@cache
def _adapter() -> TypeAdapter[MergeEvent]:
    return TypeAdapter(Annotated[MergeEvent, Field(discriminator="event")])


def to_line(event: MergeEvent) -> bytes:
    """``event`` as one JSON line."""
    return _adapter().dump_json(event) + b"\n"


def from_line(line: bytes) -> MergeEvent:
    """The event that `to_line` wrote; raises pydantic's ValidationError for anything else."""
    return _adapter().validate_json(line)
