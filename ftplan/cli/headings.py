"""Under which heading help shows an option or a command; the order is that of the pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OTHER: Final = "More"
"""The heading of what no other names."""

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "What is asked": (
        *("demo", "resume", "resume_or_start", "model", "gpus", "method", "global_batch", "seq_len", "max_seq"),
        *("objective", "margin", "cards", "max_devices", "batch", "estimator", "metrics", "before", "limit"),
        *("max_new_tokens", "batch_size", "show", "reset", "min_params", "max_params", "min_memory", "base"),
        *("max_ram", "dtype", "max_shard_size", "trials", "budget", "confirm", "framework", "settings"),
    ),
    "Hosts and links": ("host_memory", "link", "network"),
    "Fixes": ("quick", "fix", "pick"),
    "Moved from other GPUs": ("was_gpus", "was_batch"),
    "Data": (
        *("data", "dataset", "data_format", "skip_bad_rows", "chat_template", "no_data_cache", "eval_fraction"),
        *("weights", "tokenizer"),
    ),
    "LoRA and adapters": (
        *("lora_rank", "lora_alpha", "lora_targets", "lora_dropout", "adapter_len", "adapter_layers"),
        "adapter_dtype",
    ),
    "Batch": ("micro_batch", "accumulation", "padding", "packing"),
    "Numbers and kernels": (
        *("quantization", "double_quantization", "prepare_kbit", "weights_dtype", "precision"),
        *("optimizer", "attention", "kernels", "loss_path"),
    ),
    "Memory and sharding": (
        *("gradient_checkpointing", "sharding", "offload", "zero_reduce_bucket", "zero_prefetch_bucket"),
        *("zero_persistence_threshold", "zero_overlap", "sync_each_batch", "stack", "expandable_segments"),
        "evaluates",
    ),
    "Time and cost": ("samples", "epochs", "mean_tokens", "price"),
    "Training": ("max_steps", "learning_rate", "save_steps", "keep", "seed", "track", "count_flops", "profile"),
    "Several machines": (*("nodes", "node_rank", "rdzv_endpoint", "rdzv_id", "rdzv_timeout", "interface", "timeout"),),
    "Launch": (
        *("run_dir", "cache_dir", "engine", "engine_env", "tune", "rehearse", "dry_run", "force"),
        *("max_restarts", "max_fallbacks"),
    ),
    "Page": ("host", "port", "runs", "hosted", "token", "open_browser"),
    "Output": ("folder", "out", "report", "formats", "for_version", "job", "output", "quiet", "as_json", "help"),
}
"""Names of parameters."""

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Planning": ("plan", "check", "estimate", "need", "max"),
    "Running": ("tune", "doctor", "run", "report", "merge", "predict", "calibrate", "ui"),
    "Catalogues": ("models", "gpus"),
}


def grouped(headings: Mapping[str, tuple[str, ...]], names: list[str]) -> dict[str, list[str]]:
    """``names`` by heading, in the order of the pages; what no heading has comes last but for the output."""
    known = {name for each in headings.values() for name in each}
    found = {heading: [name for name in each if name in names] for heading, each in headings.items()}
    output = found.pop("Output", [])
    found[OTHER] = [name for name in names if name not in known]
    return {heading: each for heading, each in {**found, "Output": output}.items() if each}
