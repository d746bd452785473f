"""``ftplan tune``: measure the best plans on this machine and take the fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from ftplan.cli import options
from ftplan.errors import InputError

PlanFile = Annotated[Path | None, typer.Argument(metavar="[PLAN.json]", help="A plan that ftplan plan --out wrote.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the plan that was fastest into this folder.")]
Trials = Annotated[int, typer.Option("--trials", min=1, max=64, help="How many plans to measure at most.")]
Budget = Annotated[str, typer.Option("--budget", help="Time for all trials: 90s, 5m.")]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="Keeps the results (default ftplan-tune): the same call goes on there."),
]

OWN = ("plan_file", "trials", "budget", "folder", "out", "quiet", "as_json")
"""Options that say how to measure, not what."""

EXAMPLES: Final = """
# measure the best plans here, and write the fastest
ftplan tune --model Qwen2.5-7B --gpus local --method lora --out tuned
# measure what is near a plan, for five minutes at most
ftplan tune plan.json --budget 5m --trials 6
"""


def command(
    plan_file: PlanFile = None,
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
    trials: Trials = 4,
    budget: Budget = "110s",
    folder: Folder = None,
    out: Out = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Measure the plans that look best for a few steps each, with random weights, and take the fastest that fits.

    An out-of-memory error is a result, not a failure. All results are recorded, so that later plans go by them.

    Exit code 0 with a plan, 1 if nothing fits, 2 for bad input, 3 if nothing could be measured.
    """
    values = dict(locals())
    from ftplan.cli.run_command import require_training_libraries
    from ftplan.units import parse_seconds

    seconds = parse_seconds(budget)
    if not seconds:
        raise InputError(f"budget {budget!r} is no duration", hint="for example 90s or 5m", field="budget")
    require_training_libraries()
    from ftplan.render.plans import print_plan
    from ftplan.render.tuning import TuneDisplay, print_tuned
    from ftplan.workflows import planning, tuning

    if plan_file is not None:
        planned = [name for name in values if name not in OWN]
        options.refuse(values, planned, "a plan file says all that is planned, and takes no", hint="leave it out")
        chosen = planning.load_plan(plan_file)
    else:
        if model is None:
            raise InputError("--model is missing", hint="ftplan tune --model Qwen2.5-7B --gpus local", field="model")
        pins = options.given_pins(values, *OWN)
        names = ("model", "method", "global_batch", "seq_len", "margin", "host_memory", "lora_rank")
        asked = {name: values[name] for name in names if values[name] is not None}
        chosen = planning.plan(planning.plan_request(gpus or "local", pins=pins, **asked))
    if chosen.config is None:
        print_plan(chosen, brief=quiet)
        return 1
    with TuneDisplay(seconds) as display:
        tuned = tuning.tune(chosen, display.show, trials=trials, budget_seconds=seconds, folder=folder)
    written = planning.write_plan(tuned.plan, out) if out is not None else ()
    if as_json:
        typer.echo(json.dumps(tuning.tuned_document(tuned), indent=2))
        return 0
    print_tuned(tuned, brief=quiet)
    for path in () if quiet else written:
        typer.echo(f"wrote {path}")
    return 0
