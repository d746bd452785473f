"""What is planned and measured: models, methods, emulated cards; the plan, its neighbours and fixed advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.ranking import speed
from ftplan.planner.search import plan, search
from ftplan.profiles.models import load_model
from ftplan.results import Candidate, Plan
from ftplan.spec import PlanRequest, RunConfig

CARD: Final = "H100"
SEQ_LEN: Final = 1024
GLOBAL_BATCH: Final = 32


@dataclass(frozen=True)
class Combination:
    """A model to train by a method on ``gpus`` cards of which a process may use ``gigabytes``."""

    id: str
    model: str
    method: str
    gpus: int
    gigabytes: int
    seq_len: int = SEQ_LEN
    global_batch: int = GLOBAL_BATCH

    def inventory(self, card: str = CARD) -> str:
        """The inventory that emulates the cards."""
        return f"{self.gpus}x{card}:{self.gigabytes}GB"

    def request(self, card: str = CARD) -> PlanRequest:
        """What the planner is asked."""
        return PlanRequest(
            model=self.model,
            inventory=parse_inventory(self.inventory(card)),
            method=self.method,
            seq_len=self.seq_len,
            global_batch=self.global_batch,
        )


COMBINATIONS: Final = (
    Combination("1x8-full-05", "Qwen2.5-0.5B", "full", 1, 8),
    Combination("1x8-qlora-3", "Qwen2.5-3B", "qlora", 1, 8),
    Combination("1x12-lora-15", "Qwen2.5-1.5B", "lora", 1, 12),
    Combination("1x16-qlora-8", "Llama-3.1-8B", "qlora", 1, 16),
    Combination("1x24-lora-7", "Qwen2.5-7B", "lora", 1, 24),
    Combination("1x48-lora-8", "Llama-3.1-8B", "lora", 1, 48),
    Combination("1x48-full-15", "Qwen2.5-1.5B", "full", 1, 48),
    Combination("1x79-lora-7", "Qwen2.5-7B", "lora", 1, 79),
    Combination("2x24-full-15", "Qwen2.5-1.5B", "full", 2, 24),
    Combination("2x16-lora-3", "Llama-3.2-3B", "lora", 2, 16),
    Combination("2x80-full-3", "Llama-3.2-3B", "full", 2, 80),
    Combination("2x12-qlora-7", "Qwen2.5-7B", "qlora", 2, 12),
)


def planned(combination: Combination, card: str = CARD) -> Plan:
    """The plan for a combination."""
    request = combination.request(card)
    return plan(request, load_model(combination.model), resolve_inventory(request.inventory))


def trials(combination: Combination, card: str = CARD) -> Iterator[tuple[str, RunConfig]]:
    """The plan first, then its neighbours and the fixed advice, each with a name; none comes twice."""
    chosen = planned(combination, card).config
    assert chosen is not None, combination
    seen: list[RunConfig] = []
    for name, config in (("plan", chosen), *_neighbours(combination, chosen, card), *_advice(combination, chosen)):
        if config not in seen:
            seen.append(config)
            yield name, config


def _neighbours(combination: Combination, chosen: RunConfig, card: str) -> Iterator[tuple[str, RunConfig]]:
    """The best with another checkpointing, kernels or sharding, and the next micro-batches."""
    fitting = _fitting(combination, chosen, card)
    for field in ("gradient_checkpointing", "kernels", "sharding"):
        best: dict[Any, RunConfig] = {}
        for one in fitting:
            value = getattr(one.config, field)
            if value != getattr(chosen, field):
                best.setdefault(value, one.config)
        for value, config in best.items():
            yield f"{field} {value}", config
    samples = chosen.micro_batch * chosen.accumulation
    for micro in (chosen.micro_batch * 2, chosen.micro_batch // 2):
        if micro and samples % micro == 0:
            yield f"micro-batch {micro}", _split(chosen, micro, samples)
    for one in fitting[:3]:
        yield "next best", one.config


def _fitting(combination: Combination, chosen: RunConfig, card: str) -> list[Candidate]:
    """What is said to fit with the same method, best first, without machinery for its own sake."""
    request = combination.request(card)
    found = search(request, load_model(combination.model), resolve_inventory(request.inventory))
    alike = [one for one in found.fitting if one.config.lora_rank == chosen.lora_rank]
    alike = [one for one in alike if one.config.optimizer == chosen.optimizer and one.config.method == chosen.method]
    if chosen.offload == "none":
        alike = [one for one in alike if one.config.offload == "none"]
    return sorted(alike, key=speed, reverse=True)


def _split(config: RunConfig, micro: int, samples: int) -> RunConfig:
    accumulation = samples // micro
    batch = {"micro_batch": micro, "accumulation": accumulation, "padding": micro > 1}
    return config.model_copy(update={**batch, "sync_each_batch": config.sync_each_batch and accumulation > 1})


def _advice(combination: Combination, chosen: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """LLaMA-Factory's examples and the articles of the scenarios, with the plan's adapters and sequence length."""
    samples = combination.global_batch // combination.gpus
    plain = {"kernels": "none", "loss_path": "chunked", "gradient_checkpointing": True, "offload": "none"}
    for name, micro, more in (*_llamafactory(combination), *_articles(combination)):
        fields = {**chosen.model_dump(), **plain, "sync_each_batch": False, **more}
        batch = {"micro_batch": micro, "accumulation": samples // micro, "padding": micro > 1}
        yield name, RunConfig.model_validate({**fields, **batch})


def _llamafactory(combination: Combination) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """examples/train_lora, train_qlora and train_full: batch 1, checkpointing, DeepSpeed ZeRO-3 for full on several."""
    on_several = "zero3" if combination.method == "full" else "ddp"
    sharding = "none" if combination.gpus == 1 else on_several
    yield "llamafactory example", 1, {"sharding": sharding, **_weights(combination, sharding)}


def _articles(combination: Combination) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Scenario 1: micro-batch 4 with DeepSpeed; scenario 3: ZeRO-3 with the optimizer on the host."""
    if combination.gpus == 1:
        yield "advice: micro-batch 4", 4, {"sharding": "none", **_weights(combination, "none")}
    elif combination.method == "full":
        fields = {"sharding": "zero3", "offload": "optimizer", **_weights(combination, "zero3")}
        yield "advice: zero3, optimizer on the host", 4, fields
    else:
        yield "advice: zero2, micro-batch 4", 4, {"sharding": "zero2"}


def _weights(combination: Combination, sharding: str) -> Mapping[str, Any]:
    """Full fine-tuning loads 16-bit weights where DeepSpeed keeps the fp32 copy."""
    if combination.method != "full":
        return {}
    return {"weights_dtype": "bf16" if sharding.startswith("zero") else "fp32", "precision": "bf16"}
