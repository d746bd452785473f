"""Why the plan is what it is: every choice against the best that has another value there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ftplan.planner.ranking import BY_MEMORY, NEAR_EQUAL, needed, speed
from ftplan.planner.rules import needed_packages
from ftplan.planner.space import DEFAULT_PROMPTED_LAYERS, DEFAULT_RANK, HIGHER_RANKS, Tier
from ftplan.profiles.device_schema import Cluster
from ftplan.results import Candidate, Compared, Reason, RejectedGroup
from ftplan.spec import PlanRequest, RunConfig
from ftplan.units import GB

COMPARED: Final = ("offload", "gradient_checkpointing", "kernels", "micro_batch")
"""Fields the search chose by speed, explained by what the next best value would cost."""


@dataclass(frozen=True)
class Choice:
    """What was chosen and what from: ``ranked`` holds it first, ``rejected`` what did not fit or broke a rule.

    ``faster`` is the fastest candidate that another method offers, if it is faster than the chosen one.
    """

    chosen: Candidate
    ranked: tuple[Candidate, ...]
    rejected: tuple[RejectedGroup, ...]
    faster: Candidate | None
    tier: Tier

    @property
    def config(self) -> RunConfig:
        """The chosen configuration."""
        return self.chosen.config


def explain(choice: Choice, request: PlanRequest, cluster: Cluster) -> tuple[Reason, ...]:
    """A reason for every field that was chosen, in the order a user reads them."""
    config = choice.config
    reasons = [_method(choice, request)]
    compared = _compared(choice, "sharding")
    reasons.append(Reason("sharding", config.sharding, _sharding(choice, compared, request), compared))
    for field in COMPARED:
        compared = _compared(choice, field)
        because = _because(field, choice, compared, request)
        reasons.append(Reason(field, str(getattr(config, field)), because, compared))
    reasons += _batch(config, request, cluster)
    reasons += _adapters(choice, request)
    reasons += _numbers(config, request, cluster)
    reasons += _rest(config, request)
    reasons += _links(config, request, cluster)
    return tuple(reasons)


def _compared(choice: Choice, field: str) -> tuple[Compared, ...]:
    """Every other value of ``field``: the best that fits with it, else the nearest miss of the same method."""
    mine = getattr(choice.config, field)
    found: dict[Any, Compared] = {}
    for one in choice.ranked:
        value = getattr(one.config, field)
        if value != mine and value not in found:
            found[value] = Compared(str(value), speed(one) / speed(choice.chosen), needed(one))
    missed: dict[Any, Compared] = {}
    for group in choice.rejected:
        value = getattr(group.config, field)
        if value == mine or value in found or group.config.method != choice.config.method:
            continue
        rejection = group.rejection
        miss = Compared(str(value), None, rejection.needed_bytes, rejection.rule, rejection.lacking_bytes)
        if value not in missed or _lacks(miss) < _lacks(missed[value]):
            missed[value] = miss
    return (*found.values(), *sorted(missed.values(), key=_lacks))


def _lacks(miss: Compared) -> float:
    return float("inf") if miss.lacking_bytes is None else miss.lacking_bytes


def _method(choice: Choice, request: PlanRequest) -> Reason:
    tier, chosen, faster = choice.tier, choice.chosen, choice.faster
    pinned = {"weights_dtype", "precision", "optimizer"} & set(request.pins)
    because = tier.because if request.method == "auto" or (tier.method == "full" and not pinned) else "asked for"
    compared: tuple[Compared, ...] = ()
    if request.objective == "memory" and request.method == "auto":
        because = "the method that needs least memory here"
    elif faster is not None:
        ratio = speed(faster) / speed(chosen)
        because += f"; {faster.config.method} would be {ratio - 1:.0%} faster here"
        compared = (Compared(faster.config.method, ratio, needed(faster)),)
    return Reason("method", choice.config.method, because, compared)


def _sharding(choice: Choice, compared: tuple[Compared, ...], request: PlanRequest) -> str:
    """The chosen sharding against the best of every other."""
    if "sharding" in request.pins:
        return "asked for"
    mine = choice.config.sharding
    fitting = [one for one in compared if one.speed_ratio is not None]
    if request.objective in BY_MEMORY and fitting:
        return _by_memory("sharding", fitting[0], choice.chosen)
    if mine == "none":
        return "one card, nothing to share"
    others = [f"{one.value} {_pace(1 - one.speed_ratio)}" for one in fitting if one.speed_ratio is not None]
    plain = f"{mine} fits"
    lacking = {one.value for one in compared if one.rule}
    simpler = [name for name in ("none", "ddp") if name in lacking and mine not in ("none", "ddp")]
    if simpler:
        plain = f"{simpler[-1]} does not fit"
    return plain + (": " + ", ".join(others) if others else "")


def _because(field: str, choice: Choice, compared: tuple[Compared, ...], request: PlanRequest) -> str:
    if field in request.pins:
        return "asked for"
    nearest = next(iter(compared), None)
    if nearest is None:
        return "the only choice on these devices"
    if nearest.speed_ratio is None:
        return _forced(field, choice, nearest)
    if request.objective in BY_MEMORY:
        return _by_memory(field, nearest, choice.chosen)
    return _against(field, nearest.value, 1 - nearest.speed_ratio) + _package(field, choice.config)


def _forced(field: str, choice: Choice, nearest: Compared) -> str:
    """Why no other value was possible: it breaks a rule, or lacks memory."""
    if nearest.lacking_bytes is not None:
        missed = _shown(field, nearest.value)
        return f"with {choice.config.method}, nothing else fits; the nearest miss is {missed}"
    rejection = next(one.rejection for one in choice.rejected if one.rejection.rule == nearest.rule)
    return f"{_shown(field, nearest.value)} is ruled out: {rejection.reason}"


def _package(field: str, config: RunConfig) -> str:
    packages = needed_packages(config.model_copy(update={"quantization": "none", "sharding": "none", "optimizer": ""}))
    return f"; needs {packages[0]} installed" if field == "kernels" and packages else ""


def _against(field: str, value: str, slower: float) -> str:
    named = _shown(field, value)
    if slower <= -NEAR_EQUAL:
        return f"simpler: {named} is {-slower:.0%} faster at most"
    if slower < NEAR_EQUAL:
        return f"about as fast as {named}, and simpler or smaller"
    return f"the fastest that fits: {named} is {slower:.0%} slower"


def _pace(slower: float) -> str:
    """How another fares: within the error of the estimates it may be faster too."""
    if slower <= -NEAR_EQUAL:
        return f"{-slower:.0%} faster at most"
    return f"{slower:.0%} slower" if slower >= NEAR_EQUAL else "about as fast"


def _by_memory(field: str, other: Compared, chosen: Candidate) -> str:
    assert other.needed_bytes is not None
    more = other.needed_bytes / needed(chosen) - 1
    named = _shown(field, other.value)
    return f"needs least: {named} needs {more:.0%} more" if more >= 0.01 else f"needs no more than {named}"


def _shown(field: str, value: str) -> str:
    if field == "gradient_checkpointing":
        return "activation checkpointing" if value == "True" else "no activation checkpointing"
    if field == "kernels":
        return "Liger" if value == "liger" else "plain transformers"
    if field == "micro_batch":
        return f"micro-batch {value}"
    return f"{field} {value}"


def _batch(config: RunConfig, request: PlanRequest, cluster: Cluster) -> Iterator[Reason]:
    ranks = 1 if config.sharding == "none" else cluster.world_size
    yield Reason(
        "accumulation",
        str(config.accumulation),
        f"{config.micro_batch} x {config.accumulation} on {ranks} rank(s) = {request.global_batch} samples, exactly",
    )
    if request.seq_len_is_default:
        yield Reason("seq_len", str(config.seq_len), "not given: the default, or all positions the model has")
    elif request.seq_len_is_limit:
        yield Reason("seq_len", str(config.seq_len), "the longest that has a plan, up to what was asked for")
    if "packing" in request.pins:
        yield Reason("packing", str(config.packing), "asked for")
    elif config.padding:
        yield Reason("padding", "True", "samples of a micro-batch are padded to the longest; counted at full length")


def _adapters(choice: Choice, request: PlanRequest) -> Iterator[Reason]:
    config = choice.config
    if config.trains_lora:
        yield from _lora(choice, request)
    if config.trains_prompts:
        yield from _prompts(config, request)
    if config.quantization != "none":
        chosen = f"{config.quantization}{' twice' if config.double_quantization else ''}"
        because = "asked for" if "quantization" in request.pins else "4-bit NormalFloat, its scales in 8 bits"
        yield Reason("quantization", config.quantization, f"{because} ({chosen}, bitsandbytes)")


def _prompts(config: RunConfig, request: PlanRequest) -> Iterator[Reason]:
    default = "llama-cookbook's default"
    yield Reason("adapter_len", str(config.adapter_len), "asked for" if "adapter_len" in request.pins else default)
    if "adapter_layers" in request.pins:
        because = "asked for"
    else:
        all_layers = config.adapter_layers < DEFAULT_PROMPTED_LAYERS
        because = f"all the model has; {default} is {DEFAULT_PROMPTED_LAYERS}" if all_layers else default
    yield Reason("adapter_layers", str(config.adapter_layers), because)


def _lora(choice: Choice, request: PlanRequest) -> Iterator[Reason]:
    config = choice.config
    if "lora_rank" in request.pins:
        because = "asked for"
    elif config.lora_rank > DEFAULT_RANK:
        highest = max(HIGHER_RANKS)
        because = "the highest that is tried" if config.lora_rank == highest else "the highest that costs little speed"
    else:
        because = "the default" if config.lora_rank == DEFAULT_RANK else "fits"
    yield Reason("lora_rank", str(config.lora_rank), because)
    if "lora_targets" in request.pins:
        because = "asked for"
    elif config.lora_targets == "all-linear":
        because = "every linear layer: matches full fine-tuning best (Dettmers et al. 2023)"
    else:
        because = choice.tier.because
    yield Reason("lora_targets", config.lora_targets, because)


def _numbers(config: RunConfig, request: PlanRequest, cluster: Cluster) -> Iterator[Reason]:
    lacking = next((gpu.name for gpu in cluster.gpus if not gpu.bf16), None)
    if "precision" in request.pins:
        yield Reason("precision", config.precision, "asked for")
    elif cluster.gpus[0].kind == "cpu":
        yield Reason("precision", config.precision, "a CPU computes in fp32")
    else:
        because = f"{lacking} has no bf16" if lacking else "every card computes in bf16, which needs no loss scaling"
        yield Reason("precision", config.precision, because)
    yield Reason("optimizer", config.optimizer, _optimizer(config, request, cluster))


def _optimizer(config: RunConfig, request: PlanRequest, cluster: Cluster) -> str:
    if "optimizer" in request.pins:
        return "asked for"
    if cluster.gpus[0].kind == "cpu":
        return "the plain AdamW, which runs on a CPU"
    if config.optimizer.endswith("8bit"):
        return "8-bit states, because 32-bit ones do not fit; slightly noisier updates"
    return "one fused kernel, no temporaries"


def _rest(config: RunConfig, request: PlanRequest) -> Iterator[Reason]:
    if "attention" in request.pins:
        yield Reason("attention", config.attention, "asked for")
    elif config.attention == "eager":
        yield Reason("attention", "eager", "this architecture has no other in transformers")
    else:
        yield Reason("attention", config.attention, "torch's own fused kernels, which every card here has")
    if config.sharding == "ddp" and config.trains_adapters:
        yield Reason(
            "memory", "per card", "DDP holds the whole model on every card: more cards give speed, not smaller shares"
        )
    if config.expandable_segments:
        yield Reason("expandable_segments", "True", "the allocator wastes little: a card is usable to a few percent")


def _links(config: RunConfig, request: PlanRequest, cluster: Cluster) -> Iterator[Reason]:
    """What gradients and parameters travel over, where several devices take part."""
    if config.sharding == "none" or cluster.world_size == 1 or cluster.gpus[0].kind == "cpu":
        return
    if len(cluster.nodes[0].gpus) > 1:
        slowest = min(cluster.gpus, key=lambda gpu: gpu.link_bytes_per_second)
        kind = "NVLink" if slowest.nvlink_bytes_per_second else "PCIe"
        rate = f"{slowest.link_bytes_per_second / GB:,.0f} GB/s one way"
        because = "as stated" if request.inventory.link != "auto" else f"what {slowest.name} has; --link states another"
        yield Reason("link", kind, f"{rate} between the cards of a node: {because}")
    if len(cluster.nodes) > 1:
        network = min(node.host.network_bytes_per_second for node in cluster.nodes)
        stated = request.inventory.network_bytes_per_second is not None
        because = "as stated" if stated else "assumed; --network states it"
        yield Reason("network", f"{network / GB:,.0f} GB/s", f"of each node to the others: {because}")
