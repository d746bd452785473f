"""Options that several commands share: one declaration each, so that names and help never drift."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ftplan.cli import completing
from ftplan.cli.completing import constant, field
from ftplan.errors import InputError

FRAMEWORKS: Final = (
    *("llamafactory", "axolotl", "trl", "torchtune", "swift", "cookbook", "transformers"),
    *("accelerate", "deepspeed"),
)
"""Whose files are read and written: `launcher.formats.registry.FORMATS`, without its start-up time."""
SCHEDULERS: Final = ("slurm", "skypilot", "kubeflow")

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        autocompletion=completing.models,
        help="Catalogue name or alias, hub id, or a path to a config.json or folder.",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        autocompletion=completing.gpus,
        help="2x24GB, 8xRTX4090, 1xA100-80GB+1xRTX3090, 2x8xH100 (nodes x GPUs), 2xcpu:4GB, local.",
    ),
]
HostMemory = Annotated[str | None, typer.Option("--host-memory", help="RAM of each node, such as 64GB.")]
Link = Annotated[
    str | None,
    typer.Option(
        "--link",
        autocompletion=field("link", "Inventory"),
        help="Between the cards of a node: auto (the cards' own), nvlink or pcie.",
    ),
]
Network = Annotated[
    str | None, typer.Option("--network", help="Bytes a second of each node to the others, such as 25GB.")
]
LoraRank = Annotated[int | None, typer.Option("--lora-rank", min=1, help="Rank of the adapters.")]
LoraRankOrAuto = Annotated[
    str | None,
    typer.Option("--lora-rank", "--rank", help="Rank of the adapters; auto takes the highest that costs little speed."),
]
LoraAlpha = Annotated[
    int | None, typer.Option("--lora-alpha", min=1, help="Scale of the adapters (default twice the rank).")
]
LoraTargets = Annotated[
    str | None, typer.Option("--lora-targets", help="all-linear, qv, or module names joined by commas.")
]
LoraDropout = Annotated[
    float | None, typer.Option("--lora-dropout", min=0.0, max=0.99, help="Dropout before the adapters.")
]
AdapterLen = Annotated[int | None, typer.Option("--adapter-len", min=1, help="Tokens of LLaMA-Adapter's prompts (10).")]
AdapterLayers = Annotated[
    int | None, typer.Option("--adapter-layers", min=1, help="Layers with LLaMA-Adapter's prompts, from the last down.")
]
AdapterDtype = Annotated[
    str | None, typer.Option("--adapter-dtype", autocompletion=field("adapter_dtype"), help="fp32, bf16 or fp16.")
]
WeightsDtype = Annotated[
    str | None, typer.Option("--weights-dtype", autocompletion=field("weights_dtype"), help="bf16, fp16 or fp32.")
]
Precision = Annotated[
    str | None, typer.Option("--precision", autocompletion=field("precision"), help="Autocast: none, bf16 or fp16.")
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        autocompletion=constant("ftplan.estimators.states", "OPTIMIZERS"),
        help="A name of transformers' optim.",
    ),
]
Checkpointing = Annotated[
    bool | None, typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Recompute activations.")
]
SeqLen = Annotated[int | None, typer.Option("--seq-len", min=1, help="Tokens of a sample.")]
MicroBatch = Annotated[int | None, typer.Option("--micro-batch", min=1, help="Samples of one forward on one rank.")]
Accumulation = Annotated[int | None, typer.Option("--accumulation", min=1, help="Micro-batches of one step.")]
Padding = Annotated[bool | None, typer.Option("--padding/--no-padding", help="Batches carry an attention mask.")]
Packing = Annotated[bool | None, typer.Option("--packing/--no-packing", help="Samples are joined to full length.")]
Attention = Annotated[
    str | None, typer.Option("--attention", autocompletion=field("attention"), help="sdpa, eager or flash_attention_2.")
]
Kernels = Annotated[str | None, typer.Option("--kernels", autocompletion=field("kernels"), help="none or liger.")]
LossPath = Annotated[
    str | None,
    typer.Option(
        "--loss-path", autocompletion=field("loss_path"), help="full, chunked or liger; default as the stack does."
    ),
]
Sharding = Annotated[
    str | None,
    typer.Option(
        "--sharding",
        autocompletion=field("sharding"),
        help="none, ddp, fsdp2, fsdp2-grad-op, hsdp, zero1, zero2 or zero3.",
    ),
]
Offload = Annotated[
    str | None, typer.Option("--offload", autocompletion=field("offload"), help="none, optimizer or optimizer+params.")
]
ZeroReduceBucket = Annotated[
    int | None,
    typer.Option(
        "--zero-reduce-bucket", min=1, help="Elements of ZeRO's reduce bucket (default: hidden size squared)."
    ),
]
ZeroPrefetchBucket = Annotated[
    int | None,
    typer.Option(
        "--zero-prefetch-bucket", min=0, help="Elements ZeRO-3 prefetches (default: 0.9 of the hidden size squared)."
    ),
]
ZeroPersistenceThreshold = Annotated[
    int | None,
    typer.Option(
        "--zero-persistence-threshold",
        min=0,
        help="Elements up to which ZeRO-3 keeps a parameter whole (default: 10 times the hidden size).",
    ),
]
ZeroOverlap = Annotated[
    bool | None, typer.Option("--zero-overlap/--no-zero-overlap", help="DeepSpeed's overlap_comm (default: on).")
]
SyncEachBatch = Annotated[
    bool | None,
    typer.Option("--sync-each-batch/--no-sync-each-batch", help="Reduce gradients after every micro-batch (FSDP2)."),
]
Quantization = Annotated[
    str | None, typer.Option("--quantization", autocompletion=field("quantization"), help="none, nf4 or fp4.")
]
DoubleQuantization = Annotated[
    bool | None, typer.Option("--double-quantization/--no-double-quantization", help="Quantize the scales, too.")
]
PrepareKbit = Annotated[bool | None, typer.Option("--prepare-kbit/--no-prepare-kbit", help="peft's k-bit preparation.")]
Stack = Annotated[
    str | None,
    typer.Option(
        "--stack",
        autocompletion=field("stack"),
        help="Whose loop runs it: trainer, trl, llamafactory, axolotl, swift, torchtune or cookbook.",
    ),
]
Expandable = Annotated[
    bool | None, typer.Option("--expandable-segments/--no-expandable-segments", help="The CUDA allocator's option.")
]
Evaluates = Annotated[
    bool | None, typer.Option("--evaluates/--no-evaluates", help="Evaluations run between steps, and count.")
]
Samples = Annotated[
    int | None, typer.Option("--samples", min=1, help="Training samples: tells time and cost of the whole training.")
]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the samples (default 1).")]
MeanTokens = Annotated[
    float | None, typer.Option("--mean-tokens", help="Mean tokens of a sample (default: the sequence length).")
]
Price = Annotated[float | None, typer.Option("--price", help="Dollars for an hour of one GPU, in place of its own.")]
GlobalBatch = Annotated[int | None, typer.Option("--global-batch", min=1, help="Samples of one step (default 32).")]
Method = Annotated[
    str | None, typer.Option("--method", autocompletion=field("method"), help="full, lora, qlora or llama-adapter.")
]
MethodOrAuto = Annotated[
    str,
    typer.Option(
        "--method", autocompletion=field("method", "PlanRequest"), help="auto, full, lora, qlora or llama-adapter."
    ),
]
Margin = Annotated[
    float | None, typer.Option("--margin", min=0.0, max=0.49, help="Part of each card kept free (0.03).")
]


def _one_answer(context: typer.Context, value: bool) -> bool:
    """Refuse ``--quiet`` together with ``--json``, whichever comes second; and let ``--quiet`` silence the rest."""
    given = [name for name in ANSWERS if context.params.get(name)]
    if value and given:
        raise InputError("--json and --quiet exclude each other", hint="give one of them", field="quiet")
    return value


def _hushed(context: typer.Context, value: bool) -> bool:
    if _one_answer(context, value):
        from ftplan.render.console import hush

        context.call_on_close(hush())
    return value


ANSWERS: Final = ("as_json", "quiet")
AsJson = Annotated[bool, typer.Option("--json", callback=_one_answer, help="One JSON document on stdout.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_hushed, help="The answer alone, in a line or two; on stderr only what is wrong."
    ),
]

Report = Annotated[
    Path | None, typer.Option("--report", help="Write the answer as one HTML page, with charts, that needs no network.")
]

TRAINING: Final = ("samples", "epochs", "mean_tokens", "price")
"""Options that are fields of TrainingRequest."""

NOT_FIELDS: Final = frozenset(
    {"gpus", "host_memory", "batch", *ANSWERS, "margin", "estimator", "confirm", "report", *TRAINING}
)
"""Options of a command that are no fields of RunConfig."""

NOT_PINS: Final = frozenset(
    {"model", "method", "global_batch", "objective", "out", "seq_len", "lora_rank", "link", "network"}
)
"""Fields and options of a command that asks the planner, which are no pins."""


def given_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The `RunConfig` fields that were given on the command line, from a command's ``locals()``."""
    return {name: value for name, value in values.items() if value is not None and name not in NOT_FIELDS}


def given_pins(values: dict[str, Any], *others: str) -> dict[str, Any]:
    """The pins that were given, from a command's ``locals()``; ``others`` are options of this command alone."""
    return {name: value for name, value in given_fields(values).items() if name not in NOT_PINS | set(others)}


def given_training(values: dict[str, Any]) -> dict[str, Any]:
    """The `TrainingRequest` fields that were given on the command line, from a command's ``locals()``."""
    return {name: values[name] for name in TRAINING if values[name] is not None}


def refuse(given: Mapping[str, Any], names: Iterable[str], why: str, hint: str) -> None:
    """Raise InputError for the first of the options ``names`` that was ``given`` anything but ``auto``."""
    name = next((name for name in names if given.get(name) not in (None, "auto")), None)
    if name is not None:
        raise InputError(f"{why} --{name.replace('_', '-')}", hint=hint, field=name)


def write_report(picture: Any, file: Path) -> None:
    """Write the page about an answer, complete or not at all; raises InputError if the file cannot be written.

    A link stays one: the file that it leads to is written.
    """
    from ftplan.files import write_atomic
    from ftplan.render.console import note
    from ftplan.render.pages import page

    try:
        _refuse_target(file)
        write_atomic(file.resolve(), page(picture))
    except OSError as error:
        hint = "name a file in a folder that can be written"
        raise InputError(f"cannot write {file}: {error.strerror}", hint=hint, field="report") from error
    note(f"wrote {file}")


def _refuse_target(file: Path) -> None:
    """Raise InputError for what exists and is no regular file, or what stdout or stderr go to.

    A report would take the place of a device or pipe, or of what `>> log` has kept so far.
    """
    try:
        there = file.stat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode):
        kind = "a folder"
    elif not stat.S_ISREG(there.st_mode):
        kind = "a device, pipe or socket"
    elif _is_stream(there):
        kind = "what stdout or stderr go to"
    else:
        return
    raise InputError(f"--report names {kind}: {file}", hint="name a file, such as report.html", field="report")


def _is_stream(there: os.stat_result) -> bool:
    """Whether stdout or stderr go there, as behind /dev/stdout."""
    for descriptor in (1, 2):
        with suppress(OSError):  # a stream may be closed
            if os.path.samestat(there, os.fstat(descriptor)):
                return True
    return False


def missing_model_or_gpus(model: str | None, example: str) -> InputError:
    """The error for a command that needs both and lacks one."""
    missing = "model" if model is None else "gpus"
    return InputError(f"--{missing} is missing", hint=example, field=missing)
