"""``ftplan check``: does somebody's own configuration run on these devices, and what would mend it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from ftplan.cli import options
from ftplan.cli.completing import constant
from ftplan.errors import InputError, UnknownNameError

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE... | -- COMMAND...",
        help="Configuration files with key=value overrides, a script, or after -- a command line.",
        show_default=False,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        autocompletion=constant("ftplan.cli.options", "FRAMEWORKS"),
        help="Whose files they are, where that cannot be told.",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting in the files' own words, as KEY=VALUE; may be repeated.")
]
WasGpus = Annotated[
    int | None, typer.Option("--was-gpus", min=1, help="GPUs that these files ran on before: says what changed.")
]
WasBatch = Annotated[
    int | None,
    typer.Option("--was-batch", min=1, help="Samples of a step before: says how to scale the learning rate."),
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", help="The one that was good before (default: the files' own).")
]
Quick = Annotated[bool, typer.Option("--quick", help="The verdict alone: no fixes, nothing about speed.")]
FixIt = Annotated[bool, typer.Option("--fix", help="Write the first fix into the files, keeping comments and order.")]
Pick = Annotated[int, typer.Option("--pick", min=1, help="Which of the fixes --fix writes.")]
Output = Annotated[
    str,
    typer.Option(
        "--format",
        autocompletion=constant("ftplan.cli.check", "OUTPUTS"),
        help="text, json, github (annotations) or sarif.",
    ),
]

OUTPUTS: Final = ("text", "json", "github", "sarif")
NOT_CONFIG: Final = (
    *("words", "framework", "settings", "was_gpus", "was_batch", "learning_rate", "quick", "fix", "pick", "output"),
    *("link", "network", "quiet"),
)
WAS: Final = {"was_gpus": "gpus", "was_batch": "samples", "learning_rate": "learning_rate"}

EXAMPLES: Final = """
# does it fit, and what would mend it
ftplan check train.yaml --gpus 2x24GB
# write the first fix into the file
ftplan check train.yaml --gpus 1xRTX4090 --fix
# a command line, with the files that it names
ftplan check --gpus 8xRTX4090 -- torchrun --nproc_per_node 8 train.py --deepspeed ds.json
# annotations for a pull request
ftplan check train.yaml --gpus 2x24GB --format github
"""


def command(
    words: Words = None,
    gpus: options.Gpus = None,
    framework: From = None,
    settings: Set = None,
    quick: Quick = False,
    fix: FixIt = False,
    pick: Pick = 1,
    was_gpus: WasGpus = None,
    was_batch: WasBatch = None,
    learning_rate: LearningRate = None,
    margin: options.Margin = None,
    host_memory: options.HostMemory = None,
    link: options.Link = None,
    network: options.Network = None,
    model: options.Model = None,
    method: options.Method = None,
    lora_rank: options.LoraRank = None,
    lora_targets: options.LoraTargets = None,
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
    sharding: options.Sharding = None,
    offload: options.Offload = None,
    stack: options.Stack = None,
    expandable_segments: options.Expandable = None,
    evaluates: options.Evaluates = None,
    output: Output = "text",
    report: options.Report = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Tell before launch whether a configuration of another tool runs on the GPUs, phase by phase, and how to mend it.

    Reads files of LLaMA-Factory, axolotl, TRL, transformers, torchtune, ms-swift, llama-cookbook, accelerate and
    DeepSpeed, Python scripts' literal arguments, shell scripts and command lines; nothing is executed. Options that
    name a field, such as --seq-len, take the place of what the files say, or say what they leave open.

    Exit code 0 if it fits, 1 if it does not, would be refused or cannot be told, 2 for bad input.
    """
    values = dict(locals())
    if not words:
        raise InputError("nothing to check", hint="ftplan check train.yaml --gpus 2x24GB", field="file")
    output = "json" if as_json else output
    if output not in OUTPUTS:
        raise UnknownNameError("format", output, OUTPUTS, field="format")
    if quiet and output != "text":
        raise InputError(f"--format {output} and --quiet exclude each other", hint="give one of them", field="quiet")
    from ftplan.workflows import checking

    checked = checking.check(_asked(words, values))
    if report is not None:
        from ftplan.workflows import picturing

        options.write_report(picturing.of_check(checked), report)
    _show(checked.check, output, brief=quiet)
    if fix:
        _write(checked, pick)
    return 0 if checked.check.is_sound else 1


def _asked(words: list[str], values: dict[str, Any]) -> Any:
    from ftplan.units import parse_size
    from ftplan.workflows.checking import Asked

    host = values["host_memory"]
    memory = parse_size(host) if host is not None else None
    if host is not None and not memory:
        raise InputError(f"host memory {host!r} is no size", hint="for example 64GB", field="host_memory")
    fields = {name: value for name, value in options.given_fields(values).items() if name not in NOT_CONFIG}
    return Asked(
        words=tuple(words),
        gpus=values["gpus"] or "",
        framework=values["framework"] or "",
        fields=fields,
        settings=key_values(values["settings"], "set"),
        was={field: values[name] for name, field in WAS.items() if values[name] is not None},
        host_memory_bytes=memory,
        link=values["link"],
        network=values["network"],
        mends=not values["quick"],
        **({} if values["margin"] is None else {"margin": values["margin"]}),
    )


def key_values(texts: list[str] | None, option: str) -> dict[str, str]:
    """Texts such as ``cutoff_len=1024`` by their keys; raises InputError for one that is not of the form."""
    found = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--{option} {text!r} is no KEY=VALUE", hint=f"--{option} KEY=VALUE", field=option)
        found[key] = value
    return found


def _show(check: Any, output: str, *, brief: bool) -> None:
    if output == "json":
        from ftplan.results import to_json

        typer.echo(to_json(check), nl=False)
    elif output in ("github", "sarif"):
        from ftplan.render.annotations import github_lines, sarif

        typer.echo("\n".join(github_lines(check)) if output == "github" else sarif(check))
    else:
        from ftplan.render.checks import print_check

        print_check(check, brief=brief)


def _write(checked: Any, pick: int) -> None:
    from ftplan.render.console import err, note, words
    from ftplan.workflows import checking, fixing

    found = checked.check.fixes
    if not found and checked.check.is_sound:
        note("nothing to fix")
        return
    if not found:
        raise InputError("there is nothing to write", hint="the check proposes no fix", field="fix")
    if pick > len(found):
        raise InputError(f"there are {len(found)} fixes, not {pick}", hint=f"--pick 1 to {len(found)}", field="pick")
    written = checking.write(checked, found[pick - 1])
    for path in written:
        note(f"wrote {path}")
    for line in fixing.by_hand(found[pick - 1]):
        err().print(words(f"by hand: {line}"), soft_wrap=True)
