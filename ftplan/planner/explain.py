"""Why the plan is what it is: every choice against the best that has another value there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftplan.planner.space import Tier
from ftplan.profiles.schema import Cluster
from ftplan.results import Candidate, Reason
from ftplan.spec import PlanRequest, RunConfig

NEAR_EQUAL = 0.03
"""Speeds this close count as one."""

WORTH_MACHINERY = 0.1
"""Sharding and offload must be this much faster to be chosen over less: estimates of a step are no better than that."""

BY_MEMORY = ("memory", "headroom")
"""Objectives that rank by bytes instead of speed."""

COMPARED = ("offload", "gradient_checkpointing", "micro_batch")
"""Fields the search chose by speed, explained by what the next best value would cost."""


def explain(
    chosen: Candidate,
    ranked: Sequence[Candidate],
    rejected: Sequence[Candidate],
    faster: Candidate | None,
    tier: Tier,
    request: PlanRequest,
    cluster: Cluster,
) -> tuple[Reason, ...]:
    """A reason for every field that was chosen, in the order a user reads them.

    ``faster`` is the fastest candidate that another method offers, if it is faster than the chosen one.
    """
    config = chosen.config
    reasons = [_method(chosen, faster, tier, request)]
    reasons.append(Reason("sharding", config.sharding, _sharding(chosen, ranked, rejected, request)))
    for field in COMPARED:
        value = str(getattr(config, field))
        reasons.append(Reason(field, value, _compared(field, chosen, ranked, rejected, request)))
    reasons += _fixed(config, request, cluster)
    return tuple(reasons)


def _method(chosen: Candidate, faster: Candidate | None, tier: Tier, request: PlanRequest) -> Reason:
    pinned = {"weights_dtype", "precision"} & set(request.pins)
    because = tier.because if request.method == "auto" or (tier.method == "full" and not pinned) else "asked for"
    if request.objective == "memory" and request.method == "auto":
        because = "the method that needs least memory here"
    elif faster is not None and chosen.estimate is not None and faster.estimate is not None:
        gain = faster.estimate.tokens_per_second / chosen.estimate.tokens_per_second - 1
        because += f"; {faster.config.method} would be {gain:.0%} faster here"
    return Reason("method", chosen.config.method, because)


def _sharding(
    chosen: Candidate, ranked: Sequence[Candidate], rejected: Sequence[Candidate], request: PlanRequest
) -> str:
    """The chosen sharding against the best of every other."""
    if "sharding" in request.pins:
        return "asked for"
    assert chosen.estimate is not None
    best: dict[str, float] = {}
    for one in ranked:
        assert one.estimate is not None
        best.setdefault(one.config.sharding, one.estimate.tokens_per_second)
    mine = chosen.config.sharding
    other = next((one for one in ranked if one.config.sharding != mine), None)
    if request.objective in BY_MEMORY and other is not None:
        return _by_memory("sharding", chosen, other)
    if mine == "none":
        return "one card, nothing to share"
    others = [
        f"{name} {_pace(1 - speed / chosen.estimate.tokens_per_second)}" for name, speed in best.items() if name != mine
    ]
    plain = f"{mine} fits"
    lacking = {one.config.sharding for one in rejected if one.config.method == chosen.config.method} - set(best)
    simpler = [name for name in ("none", "ddp") if name in lacking and mine not in ("none", "ddp")]
    if simpler:
        plain = f"{simpler[-1]} does not fit"
    return plain + (": " + ", ".join(others) if others else "")


def _compared(
    field: str,
    chosen: Candidate,
    ranked: Sequence[Candidate],
    rejected: Sequence[Candidate],
    request: PlanRequest,
) -> str:
    if field in request.pins:
        return "asked for"
    value = getattr(chosen.config, field)
    other = next((one for one in ranked if getattr(one.config, field) != value), None)
    if other is not None and request.objective in BY_MEMORY:
        return _by_memory(field, chosen, other)
    if other is not None and chosen.estimate is not None and other.estimate is not None:
        return _against(field, other, chosen.estimate.tokens_per_second, other.estimate.tokens_per_second)
    if any(one.config.method == chosen.config.method and getattr(one.config, field) != value for one in rejected):
        nearest = _nearest(field, value, chosen, rejected)
        return f"with {chosen.config.method}, nothing else fits; the nearest miss is {nearest}"
    return "the only choice on these devices"


def _against(field: str, other: Candidate, speed: float, other_speed: float) -> str:
    named = _shown(field, getattr(other.config, field))
    slower = 1 - other_speed / speed
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


def _by_memory(field: str, chosen: Candidate, other: Candidate) -> str:
    assert chosen.estimate is not None
    assert other.estimate is not None
    more = other.estimate.needed_bytes / chosen.estimate.needed_bytes - 1
    named = _shown(field, getattr(other.config, field))
    return f"needs least: {named} needs {more:.0%} more" if more >= 0.01 else f"needs no more than {named}"


def _nearest(field: str, value: object, chosen: Candidate, rejected: Sequence[Candidate]) -> str:
    lacking = [
        (one.rejection.lacking_bytes, one)
        for one in rejected
        if one.rejection is not None
        and one.rejection.lacking_bytes is not None
        and one.config.method == chosen.config.method
        and getattr(one.config, field) != value
    ]
    if not lacking:
        return "ruled out (see rejections)"
    nearest = min(lacking, key=lambda pair: pair[0])[1]
    return _shown(field, getattr(nearest.config, field))


def _shown(field: str, value: object) -> str:
    if field == "gradient_checkpointing":
        return "activation checkpointing" if value else "no activation checkpointing"
    if field == "micro_batch":
        return f"micro-batch {value}"
    return f"{field} {value}"


def _fixed(config: RunConfig, request: PlanRequest, cluster: Cluster) -> Iterator[Reason]:
    ranks = 1 if config.sharding == "none" else cluster.world_size
    yield Reason(
        "accumulation",
        str(config.accumulation),
        f"{config.micro_batch} x {config.accumulation} on {ranks} rank(s) = {request.global_batch} samples, exactly",
    )
    if config.trains_adapters:
        because = "asked for" if "lora_rank" in request.pins else "the default" if config.lora_rank == 16 else "fits"
        yield Reason("lora_rank", str(config.lora_rank), because)
    lacking = next((gpu.name for gpu in cluster.gpus if not gpu.bf16), None)
    if "precision" in request.pins:
        yield Reason("precision", config.precision, "asked for")
    elif cluster.gpus[0].kind == "cpu":
        yield Reason("precision", config.precision, "a CPU computes in fp32")
    else:
        because = f"{lacking} has no bf16" if lacking else "every card computes in bf16, which needs no loss scaling"
        yield Reason("precision", config.precision, because)
    if request.seq_len_is_default:
        yield Reason("seq_len", str(config.seq_len), "not given: the default, or all positions the model has")
    yield Reason("optimizer", config.optimizer, _optimizer(config, request, cluster))
    if config.sharding == "ddp" and config.trains_adapters:
        yield Reason(
            "memory", "per card", "DDP holds the whole model on every card: more cards give speed, not smaller shares"
        )
    if config.expandable_segments:
        yield Reason("expandable_segments", "True", "the allocator wastes little: a card is usable to a few percent")


def _optimizer(config: RunConfig, request: PlanRequest, cluster: Cluster) -> str:
    if "optimizer" in request.pins:
        return "asked for"
    if cluster.gpus[0].kind == "cpu":
        return "the plain AdamW, which runs on a CPU"
    if config.optimizer.endswith("8bit"):
        return "8-bit states, because 32-bit ones do not fit; slightly noisier updates"
    return "one fused kernel, no temporaries"
