"""The options of ``ftplan run``, and what each of them sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from ftplan.cli.completing import constant, field

PlanFile = Annotated[Path | None, typer.Argument(metavar="[PLAN.json]", help="A plan that ftplan plan --out wrote.")]
Demo = Annotated[bool, typer.Option("--demo", help="Train the embedded tiny model on this machine's CPU, offline.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in --run-dir, or the newest that stopped; on other --gpus if given."
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="JSON or JSON Lines (may be repeated), a folder with dataset_info.json, or OWNER/NAME[:SPLIT].",
    ),
]
Dataset = Annotated[
    list[str] | None, typer.Option("--dataset", help="Sets of the dataset_info.json in --data: NAME[,NAME…].")
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Train without the rows that cannot be used.")]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        autocompletion=constant("ftplan.launcher.chat_templates", "TEMPLATES"),
        help="alpaca, chatml, llama3, mistral or plain, in place of the tokenizer's.",
    ),
]
NoDataCache = Annotated[bool, typer.Option("--no-data-cache", help="Tokenize anew, and keep nothing of it.")]
ResumeOrStart = Annotated[
    bool, typer.Option("--resume-or-start", help="Go on with the run in --run-dir if there is one, else start it.")
]
Nodes = Annotated[str | None, typer.Option("--nodes", help="Machines of the run, or MIN:MAX (default: as planned).")]
NodeRank = Annotated[int | None, typer.Option("--node-rank", min=0, help="Which of them this is, from 0.")]
Endpoint = Annotated[str | None, typer.Option("--rdzv-endpoint", help="HOST:PORT of node 0, where they meet.")]
RendezvousId = Annotated[str | None, typer.Option("--rdzv-id", help="Name of the run on all nodes.")]
JoinSeconds = Annotated[int | None, typer.Option("--rdzv-timeout", min=1, help="Seconds nodes wait for each other.")]
Interface = Annotated[str | None, typer.Option("--interface", help="Network interface between the nodes.")]
Timeout = Annotated[
    int | None, typer.Option("--timeout", min=1, help="Seconds a rank waits for the others (default: planned).")
]
DataForm = Annotated[
    str | None,
    typer.Option(
        "--data-format",
        autocompletion=constant("ftplan.launcher.job", "FormChoice"),
        help="auto, alpaca, sharegpt, chat, prompt-completion or text.",
    ),
]
EvalFraction = Annotated[float | None, typer.Option("--eval-fraction", min=0.0, max=0.9, help="Rows held out.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run (default ftplan-runs/ID).")]
Weights = Annotated[str | None, typer.Option("--weights", help="Folder with the weights, if --model is only a name.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help="Folder or hub id of the tokenizer.")]
Epochs = Annotated[float | None, typer.Option("--epochs", min=0.0001, help="Passes over the data (default 1).")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimizer steps, instead of epochs.")]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", min=1e-12, help="Default 2e-4; full 1e-5, llama-adapter 9e-3.")
]
SaveSteps = Annotated[int | None, typer.Option("--save-steps", min=1, help="Steps between checkpoints.")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="Complete checkpoints to keep.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of initial weights and data order (default 42).")]
GlobalBatch = Annotated[int | None, typer.Option("--global-batch", min=1, help="Samples of one step (default 32).")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        autocompletion=constant("ftplan.launcher.trackers", "PACKAGES"),
        help="A tracker beside TensorBoard: wandb, mlflow, …; several times.",
    ),
]
CountFlops = Annotated[bool, typer.Option("--count-flops", help="Count the FLOPs of one step.")]
Profile = Annotated[bool, typer.Option("--profile", help="Trace a few steps with the PyTorch profiler.")]
Method = Annotated[
    str | None,
    typer.Option(
        "--method", autocompletion=field("method", "PlanRequest"), help="auto, full, lora, qlora or llama-adapter."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the command and the files; start nothing.")]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="For what libraries download and compile (default: their own).")
]
ENGINES: Final = ("ftplan", "llamafactory")
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        autocompletion=constant("ftplan.cli.run_options", "ENGINES"),
        help="Whose loop trains: ftplan (default) or llamafactory.",
    ),
]
EngineEnv = Annotated[
    Path | None, typer.Option("--engine-env", help="Folder of the environment that holds llamafactory-cli.")
]
Tune = Annotated[bool, typer.Option("--tune", help="Measure the best plans first, and train the fastest.")]
Rehearse = Annotated[
    bool, typer.Option("--rehearse", help="Random weights and tokens, a few steps: prove the plan without a download.")
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="Restarts by itself between two checkpoints, after a dead worker.")
]
MaxFallbacks = Annotated[
    int, typer.Option("--max-fallbacks", min=0, help="Changes to a smaller plan by itself, when memory runs out.")
]
Force = Annotated[bool, typer.Option("--force", help="Start even what does not fit, or what preflight refuses.")]


def set_names(given: Iterable[str]) -> tuple[str, ...]:
    """The names in values of ``--dataset``, each of which may hold several."""
    return tuple(name for text in given for name in text.split(",") if name)


HYPERPARAMETERS: Final = {
    "epochs": "epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "save_steps": "save_steps",
    "keep": "save_total_limit",
    "seed": "seed",
    "track": "trackers",
    "count_flops": "count_flops",
    "profile": "profile",
    "timeout": "timeout_seconds",
}
NODE_OPTIONS: Final = {
    "nodes": "nodes",
    "node_rank": "node_rank",
    "rdzv_endpoint": "endpoint",
    "rdzv_id": "id",
    "rdzv_timeout": "join_seconds",
    "interface": "interface",
}
RESUME_OPTIONS: Final = frozenset(
    {
        *("resume", "run_dir", "gpus", "dry_run", "force", "quiet", "as_json", "max_restarts", "max_fallbacks"),
        *NODE_OPTIONS,
    }
)
"""What goes with ``--resume``."""
PINS: Final = frozenset(
    {
        *("lora_rank", "lora_targets", "adapter_len", "adapter_layers", "sharding", "offload", "micro_batch"),
        *("gradient_checkpointing", "packing"),
    }
)
PLANNED: Final = ("model", "gpus", "method", "global_batch", "seq_len", *sorted(PINS))
"""What is asked of a plan."""
