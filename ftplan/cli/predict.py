"""``ftplan predict``: what a trained model makes of a data set, beside its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ftplan.cli import completing, options
from ftplan.cli.completing import constant
from ftplan.cli.run_options import Dataset, SkipBadRows, set_names

Trained = Annotated[Path, typer.Argument(metavar="TRAINED", help="Folder of a run, an adapter, or a model.")]
Data = Annotated[
    list[Path], typer.Option("--data", help="JSON or JSON Lines (may be repeated), or a folder with dataset_info.json.")
]
DataForm = Annotated[
    str,
    typer.Option(
        "--data-format",
        autocompletion=constant("ftplan.launcher.job", "FormChoice"),
        help="auto, alpaca, sharegpt, chat, prompt-completion or text.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", autocompletion=completing.models, help="The model it was trained from, if nothing names it."
    ),
]
Metrics = Annotated[
    str,
    typer.Option("--metrics", autocompletion=completing.metrics, help="Joined by commas: loss, exact_match, rouge."),
]
Before = Annotated[bool, typer.Option("--before/--no-before", help="Ask the base, too, to compare.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Rows at most, from the first on.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of one prediction, at most.")]
SeqLen = Annotated[int | None, typer.Option("--seq-len", min=2, help="Tokens read of a row (default: the run's).")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows at once; halved where memory runs out.")]
Out = Annotated[Path | None, typer.Option("--out", help="File of predictions (default predictions.jsonl).")]

EXAMPLES: Final = """
# what a run taught, beside its base
ftplan predict ftplan-runs/20250131-120000-3f2a --data test.jsonl
# the loss alone, of 500 rows
ftplan predict adapter --data test.jsonl --metrics loss --limit 500 --no-before
"""


def command(
    trained: Trained,
    data: Data,
    dataset: Dataset = None,
    data_format: DataForm = "auto",
    skip_bad_rows: SkipBadRows = False,
    base: Base = None,
    metrics: Metrics = "loss,exact_match,rouge",
    before: Before = True,
    limit: Limit = 100,
    max_new_tokens: MaxNewTokens = 128,
    seq_len: SeqLen = None,
    batch_size: BatchSize = 8,
    out: Out = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Score a trained model on a data set, beside the base it was trained from, and keep what both wrote.

    Loss and perplexity are of the completions, each token counting the same; exact match and ROUGE of greedy
    predictions.

    Exit code 0 when done, 2 for bad input, 3 if the predicting failed.
    """
    from ftplan.cli.run_command import require_training_libraries
    from ftplan.render.predictions import PredictDisplay, print_prediction
    from ftplan.results import to_json
    from ftplan.workflows import predicting

    require_training_libraries()
    settings = predicting.PredictSettings(
        data=tuple(str(path) for path in data),
        datasets=set_names(dataset or ()),
        data_form=data_format,
        skip_bad_rows=skip_bad_rows,
        base=base,
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        before=before,
        limit=limit,
        max_new_tokens=max_new_tokens,
        max_length=seq_len,
        batch_size=batch_size,
        out=out,
    )
    with PredictDisplay() as display:
        prediction = predicting.predict(trained, settings, display.show)
    if as_json:
        typer.echo(to_json(prediction), nl=False)
    else:
        print_prediction(prediction, brief=quiet)
    return 0
