"""``ftplan models``: search the catalogue of models."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

from ftplan.cli import options

Search = Annotated[
    list[str] | None,
    typer.Argument(metavar="SEARCH", help="Words that names or architecture hold, all of them, in any case."),
]
MinParams = Annotated[str | None, typer.Option("--min-params", help="At least so many parameters, such as 500M.")]
MaxParams = Annotated[
    str | None, typer.Option("--max-params", help="At most so many, such as 9B (Llama-3.1-8B has 8.03B).")
]

EXAMPLES: Final = """
# all Llamas of 8B
ftplan models llama 8b
# mixtures of experts of 100B at most
ftplan models moe --max-params 100B
# names alone, for a script
ftplan models qwen2.5 --quiet
"""


def command(
    search: Search = None,
    min_params: MinParams = None,
    max_params: MaxParams = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Search the catalogue of models: sizes, weights and the names that --model takes; all of it without SEARCH.

    Any other model goes by its config.json or its hub id. Exit code 0 if some were found, 1 if none, 2 for bad input.
    """
    from ftplan.workflows import listing_models

    listing = listing_models.find_models(search or (), min_params=min_params, max_params=max_params)
    if as_json:
        typer.echo(json.dumps(listing_models.models_document(listing), indent=2))
    else:
        from ftplan.render.models import print_models

        print_models(listing, search or (), brief=quiet)
    return 0 if listing.rows else 1
