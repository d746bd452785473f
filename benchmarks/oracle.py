"""The analytic estimator beside the trace, over random configurations: ``python -m benchmarks.oracle``.

``sample COUNT SEED`` draws legal configurations of every family that transformers ships, on one and on several GPUs,
and adds what the trace says of each to data/oracle.jsonl (three to ten seconds each; needs the ``train`` extra);
``sample COUNT SEED prompts`` draws those of LLaMA-Adapter.
Without arguments the analytic estimates stand beside these lines: errors by part of the space, what differs by more
than half a percent, and a summary as JSON in the last line.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.measured_cases import DATA
from ftplan.errors import FtplanError
from ftplan.estimators.analytic import estimate
from ftplan.estimators.prompts import unsupported
from ftplan.estimators.trace.estimate import settings_for
from ftplan.estimators.trace.running import traced
from ftplan.estimators.workload import Place
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.rules import first_rejection
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import list_models, load_hf_config, load_model
from ftplan.results import Estimate, Phase, Timeline
from ftplan.spec import RunConfig

FILE = DATA / "oracle.jsonl"
REMOTE = frozenset({"baichuan", "chatglm", "internlm2", "qwen"})
"""Families with code of their own outside transformers, which a trace does not run."""

ZERO_LIMIT = 4 * 10**9
"""Parameters up to which ZeRO is sampled: its traces run every layer."""


NOT_COUNTED = ("eval", "save")
"""Phases that a plain run does not have."""


@dataclass(frozen=True)
class Case:
    """A configuration on an inventory, and what the trace said of it."""

    config: RunConfig
    gpus: str
    traced: dict[str, Any]

    @property
    def cluster(self) -> Cluster:
        """The devices."""
        return resolve_inventory(parse_inventory(self.gpus))


def cases() -> Iterator[Case]:
    """Every line of the file."""
    for line in FILE.read_text("utf-8").splitlines():
        row = json.loads(line)
        yield Case(RunConfig(**row["config"]), row["gpus"], row["traced"])


def draw(chance: random.Random, models: list[ModelProfile]) -> tuple[RunConfig, str]:
    """A random legal configuration; families are drawn first, so that each has its share."""
    families: dict[str, list[ModelProfile]] = {}
    for model in models:
        families.setdefault(model.model_type, []).append(model)
    while True:
        model = chance.choice(families[chance.choice(sorted(families))])
        found = _configuration(chance, model)
        if found is not None:
            return found


def _configuration(chance: random.Random, model: ModelProfile) -> tuple[RunConfig, str] | None:
    sharding = chance.choice(["none"] * 5 + ["ddp", "fsdp2", "fsdp2", "fsdp2-grad-op", "zero1", "zero2", "zero3"])
    gpus = "1xH100-SXM" if sharding == "none" else f"{chance.choice((2, 4, 8))}xH100-SXM"
    if chance.random() < 0.25:
        gpus = gpus.replace("H100-SXM", "A100-80GB")
    method = chance.choice(("full", "lora", "lora", "qlora"))
    weights, precision = chance.choice([("bf16", "bf16")] * 6 + [("bf16", "none"), ("fp32", "bf16"), ("fp32", "none")])
    stack = chance.choice(("trainer", "trainer", "trl", "llamafactory"))
    offload = "none"
    if sharding.startswith(("zero", "fsdp2")) and chance.random() < 0.25:
        offload = "optimizer" if sharding in ("zero1", "zero2") else "optimizer+params"
    values: dict[str, Any] = {
        "model": model.id,
        "method": method,
        "lora_rank": chance.choice((8, 16, 64)),
        "lora_targets": chance.choice(("all-linear", "all-linear", "qv")),
        "lora_dropout": chance.choice((0.0, 0.0, 0.05)),
        "prepare_kbit": method == "qlora" and chance.random() < 0.3,
        "weights_dtype": weights,
        "precision": precision,
        "optimizer": chance.choice(["adamw_torch"] * 4 + ["adamw_torch_fused", "adamw_bnb_8bit", "adafactor", "sgd"]),
        "gradient_checkpointing": chance.random() < 0.6,
        "seq_len": chance.choice((512, 1024, 2048, 2048, 4096, 8192)),
        "micro_batch": chance.choice((1, 1, 2, 4, 8)),
        "accumulation": chance.choice((1, 1, 1, 4)),
        "padding": chance.random() < 0.2,
        "attention": chance.choice(("sdpa", "sdpa", "sdpa", "eager", "flash_attention_2")),
        "sharding": sharding,
        "offload": offload,
        "sync_each_batch": sharding.startswith("fsdp2") and chance.random() < 0.5,
        "stack": stack,
        "expandable_segments": chance.random() < 0.5,
    }
    if chance.random() < 0.1 and not values["padding"]:
        values["packing"] = True
    if chance.random() < 0.1 and stack != "trl":
        values["kernels"] = "liger"
    if values["attention"] == "eager":
        values["seq_len"] = min(values["seq_len"], 2048)
    config = RunConfig(**values)
    if sharding.startswith("zero") and model.total_params > ZERO_LIMIT:
        return None
    if config.tokens_per_micro_batch > 32768:
        return None
    if first_rejection(config, model, resolve_inventory(parse_inventory(gpus))) is not None:
        return None
    return config, gpus


def trace_one(config: RunConfig, gpus: str) -> dict[str, Any]:
    """What the trace says, in a form to keep: peaks by phase with their parts, what is needed, the host, the work."""
    place = Place(config, resolve_inventory(parse_inventory(gpus)))
    told = traced(settings_for(config, load_hf_config(config.model), place, place.gpus[0]), use_cache=False)
    return {
        "peak_allocated_bytes": told.peak_allocated_bytes,
        "peak_reserved_bytes": told.peak_reserved_bytes,
        "needed_bytes": told.needed_bytes,
        "peak_phase": told.peak_phase,
        "phases": {
            phase: [peak.allocated_bytes, peak.reserved_bytes, dict(list(peak.parts.items())[:12])]
            for phase, peak in told.phases.items()
        },
        "host": {phase: peak.allocated_bytes for phase, peak in told.host_phases.items()},
        "work": {
            phase: [dict(work.matrix_flops), work.bytes_moved, work.kernels, dict(work.sent_bytes)]
            for phase, work in told.work.items()
        },
    }


def draw_prompts(chance: random.Random, models: list[ModelProfile]) -> tuple[RunConfig, str]:
    """A random legal configuration of LLaMA-Adapter."""
    adaptable = [model for model in models if not unsupported(model)]
    while True:
        drawn, gpus = draw(chance, adaptable)
        model = load_model(drawn.model)
        quantization = chance.choice(("none", "none", "nf4"))
        fields = {
            **drawn.model_dump(),
            "method": "llama-adapter",
            "adapter_len": chance.choice((10, 10, 32)),
            "adapter_layers": chance.choice((min(30, model.layer_count), model.layer_count // 2)),
            "quantization": quantization,
            "double_quantization": None,
            "adapter_dtype": None,
            "prepare_kbit": quantization != "none" and drawn.prepare_kbit,
        }
        config = RunConfig(**fields)
        if first_rejection(config, model, resolve_inventory(parse_inventory(gpus))) is None:
            return config, gpus


def sample(count: int, seed: int, what: str = "") -> None:
    """Append ``count`` traced configurations to the file; ``what`` is empty, or ``prompts``."""
    models = [load_model(entry.id) for entry in list_models()]
    shipped = [model for model in models if model.model_type not in REMOTE]
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    for index in range(count):
        config, gpus = draw_prompts(chance, shipped) if what == "prompts" else draw(chance, shipped)
        began = time.monotonic()
        try:
            told = trace_one(config, gpus)
        except FtplanError as error:
            print(f"{index} {config.model} {config.method} {config.sharding}: {error}", file=sys.stderr, flush=True)
            continue
        row = {"config": config.model_dump(mode="json"), "gpus": gpus, "traced": told}
        with FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{index} {config.model} {config.method} {config.sharding} {time.monotonic() - began:.1f}s", flush=True)


def errors(case: Case) -> dict[str, float]:
    """Analytic over traced less one, of the peak and of the peak of each phase of a step."""
    told = estimate(case.config, load_model(case.config.model), case.cluster)
    by_phase = Timeline(told.terms).by_phase
    counted = {phase: peak for phase, (peak, _, _) in case.traced["phases"].items() if phase not in NOT_COUNTED}
    found = {"peak": told.peak_allocated_bytes / max(counted.values()) - 1}
    for phase, allocated in counted.items():
        if allocated:
            found[phase] = by_phase[Phase(phase)] / allocated - 1
    found["reserved"] = told.peak_reserved_bytes / case.traced["peak_reserved_bytes"] - 1
    found["needed"] = told.needed_bytes / (case.traced["needed_bytes"] + outside(told)) - 1
    return found


def outside(told: Estimate) -> int:
    """Bytes beside the allocator, which a trace does not tell."""
    return told.process_bytes - told.peak_reserved_bytes


WITHIN = 0.005
"""Of the traced peak: what counts as agreement."""


def main() -> None:
    """Print the comparison: every case that differs, agreement by part of the space, the summary."""
    rows = [(case, errors(case)) for case in cases()]
    by_part: dict[str, list[float]] = {}
    for case, found in rows:
        config = case.config
        for part in (config.method, config.sharding, config.stack, config.kernels, load_model(config.model).model_type):
            by_part.setdefault(part, []).append(found["peak"])
        if abs(found["peak"]) > WITHIN:
            label = f"{config.model.split('/')[-1][:26]:26} {config.method:5} {config.sharding:13}"
            figures = " ".join(f"{name[:4]} {100 * value:+7.2f}" for name, value in found.items())
            print(f"{label} {case.traced['peak_phase'][:4]} {figures}")
    for part, peaks in sorted(by_part.items()):
        agree = sum(abs(peak) <= WITHIN for peak in peaks)
        print(f"{part:24} {agree:3} of {len(peaks):3} agree, worst {100 * max(peaks, key=abs):+.2f} %")
    peaks = [found["peak"] for _, found in rows]
    result = {
        "benchmark": "oracle",
        "cases": len(peaks),
        "within_half_a_percent": sum(abs(peak) <= WITHIN for peak in peaks),
        "mean_abs_percent": round(100 * fmean(map(abs, peaks)), 3),
        "worst_percent": round(100 * max(peaks, key=abs), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["sample"]:
        sample(int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:5])
    else:
        main()
