"""``ftplan merge``: add a trained adapter to its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ftplan.cli import completing, options
from ftplan.cli.completing import constant

Trained = Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="Folder of a run, or of an adapter.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the merged model: new, and there only when complete.")]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", autocompletion=completing.models, help="The model it was trained from, if nothing names it."
    ),
]
MaxRam = Annotated[str | None, typer.Option("--max-ram", help="What merging may take, such as 8GB.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        autocompletion=constant("ftplan.launcher.merge_job", "MergeDtype"),
        help="keep (the base's own), bf16, fp16 or fp32.",
    ),
]
MaxShardSize = Annotated[str | None, typer.Option("--max-shard-size", help="Of one file (default 5GB).")]

EXAMPLES: Final = """
# a model that needs no peft
ftplan merge ftplan-runs/20250131-120000-3f2a --out merged
# with 8 GB of RAM at most, in bf16
ftplan merge adapter --base Qwen2.5-7B --out merged --max-ram 8GB --dtype bf16
"""


def command(
    trained: Trained,
    out: Out,
    base: Base = None,
    max_ram: MaxRam = None,
    dtype: Dtype = "keep",
    max_shard_size: MaxShardSize = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Add a LoRA or DoRA adapter to its base and write a model that needs no peft.

    Weights are read, added to in fp32, rounded once and written a block of rows at a time: RAM does not grow with the
    model. What it will take is told before it begins.

    Exit code 0 when done, 2 for bad input, 3 if the merging failed.
    """
    from ftplan.cli.run_command import require_training_libraries
    from ftplan.render.merging import MergeDisplay, print_merged
    from ftplan.results import to_json
    from ftplan.workflows import merging

    require_training_libraries()
    with MergeDisplay() as display:
        merged = merging.merge(
            trained,
            out,
            base=base,
            max_ram=max_ram,
            dtype=dtype,
            max_shard_size=max_shard_size,
            on_event=display.show,
        )
    if as_json:
        typer.echo(to_json(merged), nl=False)
    else:
        print_merged(merged, brief=quiet)
    return 0
