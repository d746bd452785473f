"""How long a trace takes after imports, in how much memory, and that few layers tell what all do.

``python -m benchmarks.trace_speed``: the last line is the result as JSON.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from typing import Any

import torch

from ftplan.estimators.trace.settings import TraceSettings
from ftplan.estimators.trace.worker import digested
from ftplan.profiles.models import load_hf_config
from ftplan.profiles.stacks import load_stack
from ftplan.spec import RunConfig

RANKS: dict[str, Any] = {"world_size": 8, "ranks_per_node": 8}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "7B lora": ("Qwen2.5-7B", {}, {}),
    "7B full, fsdp2 on 8": ("Qwen2.5-7B", {"method": "full", "sharding": "fsdp2"}, RANKS),
    "70B lora": ("Llama-3-70B", {}, {}),
    "70B qlora": ("Llama-3-70B", {"method": "qlora"}, {}),
    "70B full, fsdp2 on 8": ("Llama-3-70B", {"method": "full", "sharding": "fsdp2"}, RANKS),
}


def settings(model: str, fields: dict[str, Any], ranks: dict[str, Any]) -> TraceSettings:
    """A trace of one step of 2048 tokens."""
    config = RunConfig(model="traced", seq_len=2048, **fields)
    return TraceSettings(config=config, model=load_hf_config(model), stack=load_stack(config.stack), **ranks)


def main() -> None:
    """Trace each case, then whole."""
    torch.set_num_threads(1)
    digested(settings(*CASES["7B lora"]))  # imports
    result: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        wanted = settings(*case)
        started = time.perf_counter()
        few = digested(wanted)
        seconds = time.perf_counter() - started
        whole = digested(replace(wanted, whole=True))
        result[name] = {
            "seconds": round(seconds, 2),
            "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "allocated_differs_bytes": few.peak_allocated_bytes - whole.peak_allocated_bytes,
            "reserved_differs_bytes": few.peak_reserved_bytes - whole.peak_reserved_bytes,
            "needed_differs_bytes": few.needed_bytes - whole.needed_bytes,
        }
        print(name, result[name], few.note)
    print(json.dumps({"benchmark": "trace_speed", "cases": result}))


if __name__ == "__main__":
    main()
