"""``ftplan estimate``: memory and time of one configuration, or of a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ftplan.cli import options
from ftplan.cli.completing import constant
from ftplan.errors import InputError

Batch = Annotated[Path | None, typer.Option("--batch", help="JSON Lines of cases; - reads standard input.")]
Estimator = Annotated[
    str | None,
    typer.Option(
        "--estimator",
        autocompletion=constant("ftplan.spec", "EstimatorName"),
        help="analytic (default), or trace: exact, in seconds.",
    ),
]
Margin = Annotated[float, typer.Option("--margin", min=0.0, max=0.9, help="Part of each card to keep free.")]

EXAMPLES: Final = """
# LoRA with the defaults on one card
ftplan estimate --model Qwen-7B --gpus 1x24GB
# one exact configuration
ftplan estimate --model Llama-3.1-8B --gpus 4xA100-80GB --method full --sharding fsdp2 --seq-len 4096
# a file of them, as one JSON document a line
ftplan estimate --batch cases.jsonl --gpus 1x24GB --json
"""


def command(
    model: options.Model = None,
    gpus: options.Gpus = None,
    method: options.Method = None,
    lora_rank: options.LoraRank = None,
    lora_alpha: options.LoraAlpha = None,
    lora_targets: options.LoraTargets = None,
    lora_dropout: options.LoraDropout = None,
    adapter_len: options.AdapterLen = None,
    adapter_layers: options.AdapterLayers = None,
    adapter_dtype: options.AdapterDtype = None,
    quantization: options.Quantization = None,
    double_quantization: options.DoubleQuantization = None,
    prepare_kbit: options.PrepareKbit = None,
    weights_dtype: options.WeightsDtype = None,
    precision: options.Precision = None,
    optimizer: options.Optimizer = None,
    gradient_checkpointing: options.Checkpointing = None,
    seq_len: options.SeqLen = None,
    micro_batch: options.MicroBatch = None,
    accumulation: options.Accumulation = None,
    padding: options.Padding = None,
    packing: options.Packing = None,
    attention: options.Attention = None,
    kernels: options.Kernels = None,
    loss_path: options.LossPath = None,
    sharding: options.Sharding = None,
    offload: options.Offload = None,
    zero_reduce_bucket: options.ZeroReduceBucket = None,
    zero_prefetch_bucket: options.ZeroPrefetchBucket = None,
    zero_persistence_threshold: options.ZeroPersistenceThreshold = None,
    zero_overlap: options.ZeroOverlap = None,
    sync_each_batch: options.SyncEachBatch = None,
    stack: options.Stack = None,
    expandable_segments: options.Expandable = None,
    evaluates: options.Evaluates = None,
    samples: options.Samples = None,
    epochs: options.Epochs = None,
    mean_tokens: options.MeanTokens = None,
    price: options.Price = None,
    estimator: Estimator = None,
    batch: Batch = None,
    margin: Margin = 0.0,
    report: options.Report = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Estimate memory by phase and rank, host RAM and step time of one exact configuration.

    With --samples, time and cost of the whole training too.

    Exit code 0 if it fits, 1 if not, 2 for bad input.
    """
    values = dict(locals())
    fields, training = options.given_fields(values), options.given_training(values)
    if batch is not None:
        options.refuse(values, ("report",), "--batch answers many cases, and takes no", hint="leave one of the two out")
        shared = {"gpus": gpus, "estimator": estimator, "margin": margin}
        defaults = {**fields, **training, **{name: value for name, value in shared.items() if value}}
        return _batch(batch, defaults, as_json=as_json)
    if model is None or gpus is None:
        raise options.missing_model_or_gpus(model, "ftplan estimate --model Qwen-7B --gpus 1x24GB")
    from ftplan.workflows import estimating

    estimated = estimating.estimate(fields, gpus, margin=margin, estimator=estimator or "analytic", training=training)
    if report is not None:
        from ftplan.workflows import picturing

        options.write_report(picturing.of_estimate(estimated), report)
    if as_json:
        typer.echo(json.dumps(estimating.estimate_document(estimated), indent=2))
    else:
        from ftplan.render.estimates import print_estimate

        print_estimate(estimated, brief=quiet)
    return 0 if estimated.estimate.fits else 1


def _batch(file: Path, defaults: Mapping[str, Any], *, as_json: bool) -> int:
    """One document a line, in order; 2 if any line was bad."""
    from ftplan.workflows import estimating

    failed = False
    for answer in estimating.estimate_batch(_lines(file), defaults):
        failed = failed or answer.failed
        if as_json:
            typer.echo(json.dumps(answer.document))
        else:
            from ftplan.render.estimates import batch_line

            typer.echo(batch_line(answer.document))
    return 2 if failed else 0


def _lines(file: Path) -> Iterator[str]:
    if str(file) == "-":
        yield from sys.stdin
        return
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            yield from lines
    except OSError as error:
        hint = "a file of JSON Lines, or - for standard input"
        raise InputError(f"cannot read {file}: {error.strerror}", hint=hint, field="batch") from error
