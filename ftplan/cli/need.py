"""``ftplan need``: which cards a model needs, by method."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

from ftplan.cli import completing, options
from ftplan.errors import InputError

Cards = Annotated[
    str | None,
    typer.Option(
        "--cards",
        autocompletion=completing.cards,
        help="Cards to try, joined by commas: RTX4090,24GB (default: size classes).",
    ),
]
Most = Annotated[int, typer.Option("--max-devices", min=1, help="Most devices to try: 1, 2, 4, 8, then nodes of 8.")]

EXAMPLES: Final = """
# the fewest cards of each size
ftplan need --model Llama-3.1-70B --method qlora
# of these cards alone, by any method
ftplan need --model Qwen2.5-7B --cards RTX4090,A100-80GB --max-devices 8
"""


def command(
    model: options.Model = None,
    method: options.MethodOrAuto = "auto",
    cards: Cards = None,
    max_devices: Most = 16,
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
    """Find the fewest cards of each class on which a model can be trained, for every method or the one given.

    Exit code 0 if some cards suffice, 1 if none do, 2 for bad input.
    """
    values = dict(locals())
    if model is None:
        raise InputError("--model is missing", hint="ftplan need --model Llama-3.1-70B", field="model")
    from ftplan.workflows import inverse, planning

    pins = options.given_pins(values, "cards", "max_devices")
    names = ("model", "method", "global_batch", "seq_len", "margin", "host_memory", "lora_rank")
    asked = {name: values[name] for name in names if values[name] is not None}
    request = planning.plan_request("24GB", pins=pins, **asked)
    named = [card.strip() for card in cards.split(",") if card.strip()] if cards is not None else []
    found = inverse.needed_cards(request, named, max_devices)
    if as_json:
        rows = list(found)
        document = {
            "model": request.model,
            "global_batch": request.global_batch,
            "seq_len": request.seq_len,
            "needs": [inverse.sufficient_document(row) for row in rows],
        }
        typer.echo(json.dumps(document, indent=2))
        return 0 if any(row.inventory for row in rows) else 1
    from ftplan.render.inverse import print_needs

    return 0 if print_needs(request, found, brief=quiet) else 1
