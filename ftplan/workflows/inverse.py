"""Questions the other way round: which cards a model needs, and how far it goes on given ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from ftplan.errors import DoesNotFitError, InputError
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.limits import Limits, limits
from ftplan.planner.need import CARDS, METHODS, Sufficient, needs
from ftplan.profiles.models import load_model
from ftplan.results import to_jsonable
from ftplan.spec import PlanRequest
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.inputs import input_error

MOST_DEVICES: Final = 16


@dataclass(frozen=True)
class Reach:
    """How far a model goes on an inventory with each method that fits; ``refused`` are the methods that do not."""

    request: PlanRequest
    limits: tuple[Limits, ...]
    refused: tuple[str, ...]


def needed_cards(request: PlanRequest, cards: Sequence[str], most: int) -> Iterator[Sufficient]:
    """The fewest of each of ``cards`` (`CARDS` if none is named) that suffice, as they are found.

    Raises InputError for a card that no catalogue holds or pins that name nothing.
    """
    for card in cards:
        if len(parse_inventory(card).groups) != 1 or parse_inventory(card).world_size != 1:
            raise InputError(f"{card!r} is not one card", hint="name cards, such as RTX4090,24GB", field="cards")
    try:
        yield from needs(request, load_model(request.model), cards or CARDS, most, known_cluster)
    except ValidationError as error:
        raise input_error(error) from error


def sufficient_document(row: Sufficient) -> dict[str, Any]:
    """One answer as JSON values."""
    document: dict[str, Any] = to_jsonable(row)
    return {**document, "dollars_per_million_tokens": row.dollars_per_million_tokens}


def reach(request: PlanRequest) -> Reach:
    """The limits with the method asked for; with ``auto``, of each method on its own.

    Raises DoesNotFitError if no method fits, whatever the length, and InputError for pins that name nothing.
    """
    model, cluster = load_model(request.model), known_cluster(request.inventory)
    methods = METHODS if request.method == "auto" else (request.method,)
    found: list[Limits] = []
    refused: dict[str, DoesNotFitError] = {}
    for method in methods:
        try:
            found.append(limits(request.model_copy(update={"method": method}), model, cluster))
        except DoesNotFitError as error:
            refused[method] = error
        except ValidationError as error:
            raise input_error(error) from error
    if not found:
        raise next(iter(refused.values()))
    return Reach(request, tuple(found), tuple(refused))
