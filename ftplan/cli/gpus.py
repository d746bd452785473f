"""``ftplan gpus``: search the catalogue of GPUs."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

from ftplan.cli import options

Search = Annotated[
    list[str] | None,
    typer.Argument(metavar="SEARCH", help="Words that names hold, all of them, in any case; or a size class."),
]
MinMemory = Annotated[str | None, typer.Option("--min-memory", help="At least so much memory, such as 24GB.")]

EXAMPLES: Final = """
# one kind of card
ftplan gpus a100 sxm
# what a size stands for
ftplan gpus 24gb
# with 80 GB or more
ftplan gpus --min-memory 80GB
"""


def command(
    search: Search = None, min_memory: MinMemory = None, quiet: options.Quiet = False, as_json: options.AsJson = False
) -> int:
    """Search the catalogue of GPUs: memory, rates, links and price, as plans take them; all of it without SEARCH.

    Figures that ftplan calibrate measured are in the place of packaged ones. Exit code 0 if some were found, 1 if none,
    2 for bad input.
    """
    from ftplan.workflows import listing_gpus

    listing = listing_gpus.find_gpus(search or (), min_memory=min_memory)
    if as_json:
        typer.echo(json.dumps(listing_gpus.gpus_document(listing), indent=2))
    else:
        from ftplan.render.gpus import print_gpus

        print_gpus(listing, search or (), brief=quiet)
    return 0 if listing.rows else 1
