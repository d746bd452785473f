"""The catalogue of GPUs as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ftplan.profiles.size_classes import list_size_classes
from ftplan.render.console import number, out
from ftplan.render.listings import Column, Item, print_listing, print_names, print_nothing
from ftplan.render.tables import print_folded
from ftplan.units import GB, GIB
from ftplan.workflows.listing_gpus import GpuRow
from ftplan.workflows.searching import Listing

COLUMNS: Final = (
    Column("memory", "GiB"),
    Column("usable", "GiB"),
    Column("bf16", "TFLOP/s"),
    Column("fp16", "TFLOP/s"),
    Column("bandwidth", "GB/s"),
    Column("link", "GB/s"),
    Column("host", "GB/s"),
    Column("price", "$/h"),
)
WITH_SOURCES: Final = 8
"""Up to so many cards are shown with their sources, which are long."""

LEGEND: Final = (
    "memory measured: a driver printed it; assumed: it is the nominal size. Rates are the data sheet's, dense, until "
    "ftplan calibrate measures them; link is to another card and host to its RAM, one direction"
)


def print_gpus(listing: Listing[GpuRow], search: Sequence[str] = (), *, brief: bool = False) -> None:
    """The answer of ``ftplan gpus``, or the names alone."""
    if not listing.rows:
        print_nothing("GPU", search, listing.hint, brief=brief)
        return
    if brief:
        print_names([row.name for row in listing.rows])
        return
    has_sources = len(listing.rows) <= WITH_SOURCES
    print_listing("GPU", COLUMNS, [_item(row, has_sources=has_sources) for row in listing.rows])
    out().print()
    more = () if has_sources else (f"sources: with {WITH_SOURCES} GPUs or fewer, or with --json",)
    print_folded((LEGEND, _size_classes(), *more))


def _size_classes() -> str:
    return (
        f"size classes: {', '.join(list_size_classes())} or any other size stand for the common cards of that size, in "
        "every figure for the worst of them, with no link but PCIe: ftplan gpus 24GB"
    )


def _item(row: GpuRow, *, has_sources: bool) -> Item:
    values = (
        f"{row.memory_bytes / GIB:.2f}",
        f"{row.usable_bytes / GIB:.2f}",
        number(row.bf16_flops_per_second / 1e12) if row.bf16 else "no",
        number(row.fp16_flops_per_second / 1e12),
        number(row.memory_bytes_per_second / GB),
        f"{row.link} {number(row.link_bytes_per_second / GB)}",
        number(row.pcie_bytes_per_second / GB),
        "" if row.dollars_per_hour is None else f"{row.dollars_per_hour:.2f}",
    )
    source = (f"source: {row.source}",) if has_sources else ()
    return Item(row.name, values, (" · ".join(_traits(row)), *source))


def _traits(row: GpuRow) -> Iterator[str]:
    if row.compute_capability:
        yield f"compute capability {row.compute_capability}"
    yield "flash attention" if row.flash_attention_2 else "no flash attention"
    if row.calibrated:
        yield f"calibrated on {row.calibrated.measured_at[:10]}: {', '.join(row.calibrated.figures)}"
    else:
        yield f"memory {row.provenance}"
    if row.aliases:
        yield ", ".join(row.aliases)
