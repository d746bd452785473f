"""``ftplan plan``: choose everything that was not pinned, and say why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ftplan.cli import options
from ftplan.cli.completing import constant, field
from ftplan.errors import InputError

Out = Annotated[Path | None, typer.Option("--out", help="Write plan.json and files to launch it into this folder.")]
FORMATS: Final = ("native", *options.FRAMEWORKS, *options.SCHEDULERS)
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        autocompletion=constant("ftplan.cli.plan", "FORMATS"),
        help=f"Whose files --out writes: {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
    ),
]
ForVersion = Annotated[
    str | None, typer.Option("--for-version", help="Release that the files are for (default: the installed or newest).")
]
Job = Annotated[
    list[str] | None,
    typer.Option("--job", help="For slurm, skypilot, kubeflow: name=…, hours=…, partition=…, image=…, as KEY=VALUE."),
]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Training data, by the name that the tool knows.")]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective", autocompletion=field("objective", "PlanRequest"), help="throughput, memory, headroom or cost."
    ),
]
MaxSeq = Annotated[
    int | None, typer.Option("--max-seq", min=1, help="Tokens of a sample, or the most that fit where these do not.")
]
WasGpus = Annotated[
    int | None,
    typer.Option(
        "--was-gpus", min=1, help="Devices that --micro-batch and --accumulation were made for: keep that batch."
    ),
]
WasBatch = Annotated[
    int | None,
    typer.Option("--was-batch", min=1, help="Samples of a step before: says how to scale the learning rate."),
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", help="The one that was good with the batch before.")
]
Confirm = Annotated[bool, typer.Option("--confirm", help="Trace the choice, and plan again if it does not fit.")]

ASKED = (
    *("model", "method", "global_batch", "seq_len", "max_seq", "objective", "margin", "lora_rank"),
    *("host_memory", "link", "network"),
)
"""Options that `planning.plan_request` takes as they are."""

EMISSION = ("formats", "for_version", "dataset", "job")

WAS = {"was_gpus": "gpus", "was_batch": "samples", "learning_rate": "learning_rate"}
"""Options about the configuration before, and the fields of `FormerBatch` they are."""

EXAMPLES: Final = """
# what fits, how fast and why
ftplan plan --model Qwen-7B --gpus 2x24GB
# full fine-tuning, time and cost of three epochs
ftplan plan --model Qwen2.5-1.5B --gpus 1xH100 --method full --samples 50000 --epochs 3
# the longest samples up to 16384 tokens, with a tenth of each card kept free
ftplan plan --model Llama-3.1-8B --gpus 2xRTX4090 --max-seq 16384 --margin 0.1
# the plan as files of LLaMA-Factory
ftplan plan --model Qwen2.5-7B --gpus 1xRTX4090 --out plan --format llamafactory
"""


def command(
    model: options.Model = None,
    gpus: options.Gpus = None,
    method: options.MethodOrAuto = "auto",
    global_batch: options.GlobalBatch = None,
    seq_len: options.SeqLen = None,
    max_seq: MaxSeq = None,
    objective: Objective = None,
    margin: options.Margin = None,
    host_memory: options.HostMemory = None,
    link: options.Link = None,
    network: options.Network = None,
    was_gpus: WasGpus = None,
    was_batch: WasBatch = None,
    learning_rate: LearningRate = None,
    lora_rank: options.LoraRankOrAuto = None,
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
    confirm: Confirm = False,
    out: Out = None,
    formats: Formats = None,
    for_version: ForVersion = None,
    dataset: Dataset = None,
    job: Job = None,
    report: options.Report = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Choose the best configuration for a model, GPUs and a global batch, with reasons and alternatives.

    With --samples, tell time and cost of the whole training too.

    Exit code 0 with a plan, 1 if nothing fits, 2 for bad input.
    """
    values = dict(locals())
    if model is None or gpus is None:
        raise options.missing_model_or_gpus(model, "ftplan plan --model Qwen-7B --gpus 2x24GB")
    from ftplan.results import to_json
    from ftplan.workflows import planning

    emission = _emission(values)
    request = planning.plan_request(gpus, **_asked(values))
    if emission is None:
        chosen = planning.plan(request)
    else:
        from ftplan.workflows import emitting

        chosen = emitting.plan(request, emission)
    if confirm:
        from ftplan.workflows import confirming

        chosen = confirming.confirmed(chosen)
    written = _written(chosen, out, emission) if out is not None and chosen.config is not None else ()
    if report is not None:
        from ftplan.workflows import picturing

        options.write_report(picturing.of_plan(chosen, emission), report)
    if as_json:
        typer.echo(to_json(chosen), nl=False)
    else:
        from ftplan.render.plans import print_plan

        print_plan(chosen, written, brief=quiet)
    return 0 if chosen.config is not None else 1


def _asked(values: dict[str, Any]) -> dict[str, Any]:
    """What `planning.plan_request` is told, from the command's ``locals()``."""
    pins = options.given_pins(values, "max_seq", *EMISSION, *WAS)
    asked = {name: values[name] for name in ASKED if values[name] is not None}
    was = {field: values[name] for name, field in WAS.items() if values[name] is not None}
    training = options.given_training(values)
    if values["formats"] and values["samples"] is None:
        training.pop("epochs", None)  # then they are for the files alone
    return {**asked, "pins": pins, "training": training, "was": was}


def _emission(values: dict[str, Any]) -> Any:
    """What files are asked for beside ours; None for ours alone."""
    names = _formats(values)
    if not names:
        own = ("for_version", "dataset", "job")
        options.refuse(values, own, "our own files take no", hint="--format NAME says whose files take it")
        return None
    from ftplan.cli.check import key_values
    from ftplan.workflows import emitting

    return emitting.Emission(
        names=names,
        version=values["for_version"] or "",
        dataset=values["dataset"] or "",
        epochs=values["epochs"],
        job=key_values(values["job"], "job"),
    )


def _formats(values: dict[str, Any]) -> tuple[str, ...]:
    """The formats asked for, empty for ours alone; raises InputError for unknown ones, and without a folder."""
    if not values["formats"]:
        return ()
    from ftplan.workflows import emitting

    names = emitting.checked_names(values["formats"])
    if values["out"] is None:
        raise InputError("--format says whose files --out writes, and there is no --out", hint="--out DIR", field="out")
    return () if names == (emitting.NATIVE,) else names


def _written(chosen: Any, out: Path, emission: Any) -> tuple[Path, ...]:
    from ftplan.workflows import planning

    if emission is None:
        return planning.write_plan(chosen, out)
    from ftplan.workflows import emitting

    return emitting.write(chosen, out, emission)
