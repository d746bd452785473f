"""The catalogue of models as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ftplan.render.console import count, out
from ftplan.render.listings import Column, Item, print_listing, print_names, print_nothing
from ftplan.render.tables import print_folded
from ftplan.units import GIB
from ftplan.workflows.listing_models import ModelRow
from ftplan.workflows.searching import Listing

COLUMNS: Final = (
    Column("params"),
    Column("active"),
    Column("layers"),
    Column("hidden"),
    Column("vocab"),
    Column("positions"),
    Column("16-bit", "GiB"),
    Column("4-bit", "GiB"),
)
LEGEND: Final = (
    "16-bit, 4-bit: the weights alone; 4-bit as qlora loads them, where embeddings, head, norms and fused experts (and "
    "all of Falcon) stay in 16 bit. A training takes more: ftplan estimate"
)


def print_models(listing: Listing[ModelRow], search: Sequence[str] = (), *, brief: bool = False) -> None:
    """The answer of ``ftplan models``, or the names alone."""
    if not listing.rows:
        print_nothing("model", search, listing.hint, brief=brief)
        return
    if brief:
        print_names([row.id for row in listing.rows])
        return
    print_listing("model", COLUMNS, [_item(row) for row in listing.rows])
    out().print()
    print_folded((LEGEND,))


def _item(row: ModelRow) -> Item:
    values = (
        count(row.total_params),
        count(row.active_params) if row.active_params != row.total_params else "",
        str(row.layers),
        str(row.hidden_size),
        str(row.vocab_size),
        str(row.max_positions or ""),
        f"{row.weights_16bit_bytes / GIB:.2f}",
        f"{row.weights_4bit_bytes / GIB:.2f}",
    )
    names = ", ".join(_each_once((*row.aliases, *row.same_shape_ids)))
    return Item(row.id, values, (f"{row.architecture} · {names}",))


def _each_once(names: Iterable[str]) -> Iterable[str]:
    """Names that differ in more than case, in the spelling that has capitals."""
    spelled: dict[str, str] = {}
    for name in names:
        if spelled.get(name.lower(), "").islower() or name.lower() not in spelled:
            spelled[name.lower()] = name
    return spelled.values()
