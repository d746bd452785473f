"""``ftplan max``: how far a model goes on given cards."""

from __future__ import annotations

import json
from typing import Final

import typer

from ftplan.cli import options

EXAMPLES: Final = """
# longest sequence, largest micro-batch, highest rank
ftplan max --model Qwen2.5-7B --gpus 1xRTX4090
# of QLoRA alone, with micro-batches of 4
ftplan max --model Llama-3.1-8B --gpus 1x24GB --method qlora --micro-batch 4
"""


def command(
    model: options.Model = None,
    gpus: options.Gpus = None,
    method: options.MethodOrAuto = "auto",
    global_batch: options.GlobalBatch = None,
    seq_len: options.SeqLen = None,
    margin: options.Margin = None,
    host_memory: options.HostMemory = None,
    lora_rank: options.LoraRankOrAuto = None,
    lora_targets: options.LoraTargets = None,
    weights_dtype: options.WeightsDtype = None,
    precision: options.Precision = None,
    optimizer: options.Optimizer = None,
    gradient_checkpointing: options.Checkpointing = None,
    micro_batch: options.MicroBatch = None,
    packing: options.Packing = None,
    attention: options.Attention = None,
    kernels: options.Kernels = None,
    sharding: options.Sharding = None,
    offload: options.Offload = None,
    expandable_segments: options.Expandable = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Find the longest sequence, the largest micro-batch and the highest rank that fit, each with all else as given.

    What is not pinned is the planner's choice, such as sharding and checkpointing. With method auto, each method is
    told for itself.

    Exit code 0 with limits, 1 if nothing fits whatever the length, 2 for bad input.
    """
    values = dict(locals())
    if model is None or gpus is None:
        raise options.missing_model_or_gpus(model, "ftplan max --model Qwen2.5-7B --gpus 1xRTX4090")
    from ftplan.results import to_jsonable
    from ftplan.workflows import inverse, planning

    pins = options.given_pins(values)
    names = ("model", "method", "global_batch", "seq_len", "margin", "host_memory", "lora_rank")
    asked = {name: values[name] for name in names if values[name] is not None}
    found = inverse.reach(planning.plan_request(gpus, pins=pins, **asked))
    if as_json:
        typer.echo(json.dumps(to_jsonable(found), indent=2))
    else:
        from ftplan.render.inverse import print_reach

        print_reach(found, brief=quiet)
    return 0
