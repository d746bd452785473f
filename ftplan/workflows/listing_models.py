"""The catalogue of models, searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftplan.errors import InputError
from ftplan.estimators.params import active_params
from ftplan.estimators.states import whole_weight_bytes
from ftplan.estimators.workload import Workload
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import ModelEntry, list_models, load_model
from ftplan.results import to_jsonable
from ftplan.spec import RunConfig
from ftplan.units import DTYPE_BYTES, parse_count
from ftplan.workflows.searching import Listing, hint_for, holds, words_of


@dataclass(frozen=True)
class ModelRow:
    """One model with its sizes.

    ``same_shape_ids`` are repositories that it stands for as well. ``active_params`` are those that a token passes,
    fewer than all in a mixture of experts. ``max_positions`` is None where the config states none.
    ``weights_4bit_bytes`` is of the whole model as qlora loads it by default: linear weights in nf4 with their scales,
    the rest, fused experts too, in 16 bit.
    """

    id: str
    aliases: tuple[str, ...]
    same_shape_ids: tuple[str, ...]
    model_type: str
    architecture: str
    total_params: int
    active_params: int
    layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    weights_16bit_bytes: int
    weights_4bit_bytes: int

    @property
    def names(self) -> tuple[str, ...]:
        """All that ``--model`` takes for it."""
        return (self.id, *self.aliases, *self.same_shape_ids)


def find_models(
    search: Sequence[str] = (), *, min_params: str | None = None, max_params: str | None = None
) -> Listing[ModelRow]:
    """The models whose names or architecture hold all words of ``search``, by family and then by parameters.

    ``min_params`` and ``max_params`` are text such as 7B. Raises InputError if they are not, or exclude each other.
    """
    least, most = _params(min_params, "min_params"), _params(max_params, "max_params")
    if least is not None and most is not None and least > most:
        message = f"--min-params {min_params} is more than --max-params {max_params}"
        raise InputError(message, hint="swap them, or give one", field="min_params")
    words, every = words_of(search), tuple(_rows())
    named = [row for row in every if holds((*row.names, row.model_type, row.architecture), words)]
    rows = [row for row in named if (least or 0) <= row.total_params and (most is None or row.total_params <= most)]
    if rows:
        return Listing(tuple(sorted(rows, key=lambda row: (row.model_type, row.total_params, row.id))))
    names = (name for row in every for name in row.names)
    return Listing((), hint_for("model", words, names, found=len(named), limits="--min-params and --max-params"))


def models_document(listing: Listing[ModelRow]) -> dict[str, Any]:
    """The JSON document of ``ftplan models``."""
    return {"models": [to_jsonable(row) for row in listing.rows]}


def _params(text: str | None, field: str) -> int | None:
    count = None if text is None else parse_count(text)
    if text is not None and count is None:
        raise InputError(f"{text!r} is no number of parameters", hint="for example 7B or 500M", field=field)
    return count


def _rows() -> Iterator[ModelRow]:
    # Without sharding, weights take the same on any device.
    anywhere = resolve_inventory(parse_inventory("1x24GB"))
    return (_row(entry, anywhere) for entry in list_models())


def _row(entry: ModelEntry, anywhere: Cluster) -> ModelRow:
    model = load_model(entry.id)
    in_4bit = Workload(RunConfig(model=entry.id, method="qlora"), model, anywhere)
    return ModelRow(
        id=entry.id,
        aliases=entry.aliases,
        same_shape_ids=entry.same_shape_ids,
        model_type=model.model_type,
        architecture=model.architecture,
        total_params=model.total_params,
        active_params=active_params(model),
        layers=model.layer_count,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        max_positions=model.max_positions,
        weights_16bit_bytes=model.total_params * DTYPE_BYTES["bf16"],
        weights_4bit_bytes=whole_weight_bytes(in_4bit),
    )
