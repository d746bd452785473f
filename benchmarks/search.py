"""How fast the analytic estimator and the search are, in one process: ``python -m benchmarks.search``."""

from __future__ import annotations

import json
import time

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.search import plan, search
from ftplan.profiles.models import load_model
from ftplan.spec import PlanRequest, RunConfig

REQUESTS = (
    ("Qwen-7B", "2x24GB", "auto"),
    ("Llama-3.1-8B", "8xA100-80GB", "full"),
    ("Llama-3.1-70B", "2x8xH100", "auto"),
    ("Llama-3.1-70B", "2x8xH100", "full"),
)
ESTIMATES = 2000
METHODS = ("lora", "qlora")
QUANTIZATIONS = ("none", "nf4")


def main() -> None:
    """Print each plan's seconds, candidates a second of a search, and microseconds of one estimate, as one JSON line.

    A plan runs a program for every kind of configuration, and replays its choice; the search after it has these
    programs, and asks for another length.
    """
    searches = {}
    for model_name, gpus, method in REQUESTS:
        inventory = parse_inventory(gpus)
        request = PlanRequest.model_validate({"model": model_name, "inventory": inventory, "method": method})
        model, cluster = load_model(model_name), resolve_inventory(inventory)
        found = plan(request, model, cluster).search
        started = time.perf_counter()
        again = search(request.model_copy(update={"seq_len": 1024}), model, cluster)
        seconds = time.perf_counter() - started
        searches[f"{model_name} on {gpus}, {method}"] = {
            "candidates": found.candidates,
            "plan_seconds": round(found.seconds, 4),
            "search_again_seconds": round(seconds, 4),
            "candidates_per_second_again": round(again.looked_at / seconds),
        }
    model, cluster = load_model("Qwen2.5-7B"), resolve_inventory(parse_inventory("1xH100"))
    # As a search asks: other batches of a few kinds of configuration.
    configs = [
        RunConfig(
            model="Qwen2.5-7B",
            micro_batch=1 + each % 16,
            seq_len=256 * (1 + each % 31),
            method=METHODS[each % 2],
            quantization=QUANTIZATIONS[each % 2],
        )
        for each in range(ESTIMATES)
    ]
    started = time.perf_counter()
    for config in configs:
        estimate(config, model, cluster)
    one = (time.perf_counter() - started) / ESTIMATES
    print(json.dumps({"benchmark": "search", "searches": searches, "estimate_microseconds": round(one * 1e6, 1)}))


if __name__ == "__main__":
    main()
