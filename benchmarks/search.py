"""How fast the analytic estimator and the search are, in one process: ``python -m benchmarks.search``."""

from __future__ import annotations

import json
import time

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.search import plan
from ftplan.profiles.models import load_model
from ftplan.spec import PlanRequest, RunConfig

REQUESTS = (
    ("Qwen-7B", "2x24GB", "auto"),
    ("Llama-3.1-8B", "8xA100-80GB", "full"),
    ("Llama-3.1-70B", "2x8xH100", "full"),
)
ESTIMATES = 2000
METHODS = ("lora", "qlora")
QUANTIZATIONS = ("none", "nf4")


def main() -> None:
    """Print candidates a second of each search, and microseconds of one estimate, as one JSON line."""
    searches = {}
    for model_name, gpus, method in REQUESTS:
        inventory = parse_inventory(gpus)
        request = PlanRequest.model_validate({"model": model_name, "inventory": inventory, "method": method})
        found = plan(request, load_model(model_name), resolve_inventory(inventory)).search
        searches[f"{model_name} on {gpus}"] = {
            "candidates": found.candidates,
            "seconds": round(found.seconds, 4),
            "candidates_per_second": round(found.candidates / found.seconds),
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
