"""The files that a checkpoint's weights are split into, and in which of them a card that is too small gives out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from ftplan.estimators.params import total_params
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.packaged import packaged_json
from ftplan.units import ceil_div


@dataclass(frozen=True)
class Shards:
    """How many files a checkpoint has, and whether that is known or follows from the usual size of one."""

    count: int
    known: bool
    source: str


def shards(model: ModelProfile, element_bytes: int = 2) -> Shards:
    """The files of a model's checkpoint: as published where the data says, else of transformers' 4.x default size."""
    data = _data()
    row = data["models"].get(model.id)
    if row is not None:
        return Shards(int(row["shards"]), True, str(row["source"]))
    weights = total_params(model) * element_bytes
    return Shards(max(1, ceil_div(weights, int(data["default_shard_bytes"]))), False, str(data["source"]))


def dies_in(loaded_bytes: int, room_bytes: int, files: Shards) -> int | None:
    """Which file (from 1) does not fit any more when ``loaded_bytes`` in all are loaded into ``room_bytes``.

    Files are taken to be equal; None if all of them fit.
    """
    if loaded_bytes <= room_bytes:
        return None
    return min(files.count, int(max(0, room_bytes) * files.count / loaded_bytes) + 1)


@cache
def _data() -> dict[str, Any]:
    return packaged_json("checkpoints.json")
