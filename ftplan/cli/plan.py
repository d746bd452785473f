"""``ftplan plan``: choose everything that was not pinned, and say why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftplan.cli import options

Out = Annotated[Path | None, typer.Option("--out", help="Write plan.json and files to launch it into this folder.")]
GlobalBatch = Annotated[int | None, typer.Option("--global-batch", min=1, help="Samples of one step (default 32).")]
Method = Annotated[str, typer.Option("--method", help="auto, full, lora or qlora.")]
Objective = Annotated[str | None, typer.Option("--objective", help="throughput, memory, headroom or cost.")]
Margin = Annotated[
    float | None, typer.Option("--margin", min=0.0, max=0.49, help="Part of each card kept free (0.03).")
]

Confirm = Annotated[bool, typer.Option("--confirm", help="Trace the choice, and plan again if it does not fit.")]

NOT_PINS = frozenset({"model", "method", "global_batch", "objective", "out", "seq_len"})


def command(
    model: options.Model = None,
    gpus: options.Gpus = None,
    method: Method = "auto",
    global_batch: GlobalBatch = None,
    seq_len: options.SeqLen = None,
    objective: Objective = None,
    margin: Margin = None,
    host_memory: options.HostMemory = None,
    lora_rank: options.LoraRank = None,
    lora_alpha: options.LoraAlpha = None,
    lora_targets: options.LoraTargets = None,
    lora_dropout: options.LoraDropout = None,
    weights_dtype: options.WeightsDtype = None,
    precision: options.Precision = None,
    optimizer: options.Optimizer = None,
    gradient_checkpointing: options.Checkpointing = None,
    micro_batch: options.MicroBatch = None,
    accumulation: options.Accumulation = None,
    packing: options.Packing = None,
    attention: options.Attention = None,
    kernels: options.Kernels = None,
    sharding: options.Sharding = None,
    offload: options.Offload = None,
    expandable_segments: options.Expandable = None,
    samples: options.Samples = None,
    epochs: options.Epochs = None,
    mean_tokens: options.MeanTokens = None,
    price: options.Price = None,
    confirm: Confirm = False,
    out: Out = None,
    as_json: options.AsJson = False,
) -> int:
    """Choose the best configuration for a model, GPUs and a global batch, with reasons and alternatives.

    With --samples, tell time and cost of the whole training too.

    Exit code 0 with a plan, 1 if nothing fits, 2 for bad input.
    """
    values = dict(locals())
    given, training = options.given_fields(values), options.given_training(values)
    if model is None or gpus is None:
        raise options.missing_model_or_gpus(model, "ftplan plan --model Qwen-7B --gpus 2x24GB")
    from ftplan.results import to_json
    from ftplan.workflows import planning

    pins = {name: value for name, value in given.items() if name not in NOT_PINS}
    asked = {
        "model": model,
        "method": method,
        "global_batch": global_batch,
        "seq_len": seq_len,
        "objective": objective,
        "margin": margin,
    }
    request = planning.plan_request(
        gpus,
        host_memory=host_memory,
        training=training,
        pins=pins,
        **{name: value for name, value in asked.items() if value is not None},
    )
    chosen = planning.plan(request)
    if confirm:
        from ftplan.workflows import confirming

        chosen = confirming.confirmed(chosen)
    written = planning.write_plan(chosen, out) if out is not None and chosen.config is not None else ()
    if as_json:
        typer.echo(to_json(chosen), nl=False)
    else:
        from ftplan.render.plans import print_plan

        print_plan(chosen, written)
    return 0 if chosen.config is not None else 1
