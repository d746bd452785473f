"""What there is to choose from: generators of legal-looking configurations, tier by tier of quality.

A tier is a promise about the result's quality: a lower tier is looked at only when no configuration of a higher one
fits. Inside a tier everything gives the same model, so that speed may decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from ftplan.planner.batch import splits
from ftplan.profiles.schema import Cluster, ModelProfile
from ftplan.spec import PlanRequest, RunConfig

DEFAULT_RANK: Final = 16
SMALLER_RANKS: Final = (8, 4)
OPTIMIZER: Final = "adamw_torch_fused"
SMALL_OPTIMIZER: Final = "paged_adamw_8bit"
SHARDINGS: Final = ("ddp", "fsdp2", "fsdp2-grad-op", "hsdp", "zero1", "zero2", "zero3")
FSDP: Final = ("fsdp2", "fsdp2-grad-op", "hsdp")
OFFLOADS: Final = ("none", "optimizer", "optimizer+params")


@dataclass(frozen=True, slots=True)
class Tier:
    """Values that decide the trained model's quality, with the reason for this tier's place.

    ``master_copy``: full fine-tuning updates fp32 weights: loaded as such, or the copy that FSDP2 and ZeRO make.
    """

    method: str
    because: str
    lora_rank: int = DEFAULT_RANK
    optimizer: str = OPTIMIZER
    offloads: tuple[str, ...] = OFFLOADS
    master_copy: bool = True


def tiers(request: PlanRequest) -> tuple[Tier, ...]:
    """The tiers for the requested method, best first; tiers that differ only in what is pinned are one."""
    on_host = {tier.method: (tier, *_smaller(tier)) for tier in (_LORA_OFFLOADED, _QLORA_OFFLOADED)}
    by_method = {
        "full": _FULL,
        "lora": (_LORA, *_smaller(_LORA), *on_host["lora"]),
        "qlora": (_QLORA, *_smaller(_QLORA), *on_host["qlora"]),
        "auto": (_LORA, _QLORA, *_smaller(_QLORA), *on_host["qlora"], *on_host["lora"]),
    }
    distinct: dict[tuple[object, ...], Tier] = {}
    for tier in by_method[request.method]:
        distinct.setdefault(_unpinned(tier, request.pins), tier)
    return tuple(distinct.values())


def _unpinned(tier: Tier, pins: Mapping[str, Any]) -> tuple[object, ...]:
    """What of a tier the pins leave open."""
    return (
        tier.method,
        None if "lora_rank" in pins else tier.lora_rank,
        None if "optimizer" in pins else tier.optimizer,
        None if "offload" in pins else tier.offloads,
        None if "weights_dtype" in pins else tier.master_copy,
    )


_ON_DEVICE: Final = ("none", "optimizer")
_ON_HOST: Final = ("optimizer+params",)
_LORA = Tier("lora", "16-bit LoRA keeps the base weights exact: the first choice where it fits", offloads=_ON_DEVICE)
_QLORA = Tier("qlora", "4-bit base weights, because 16-bit LoRA does not fit", offloads=_ON_DEVICE)
_QLORA_OFFLOADED = Tier("qlora", "4-bit weights on the host: nothing fits on the cards", offloads=_ON_HOST)
_LORA_OFFLOADED = Tier("lora", "base weights on the host: nothing fits on the cards", offloads=_ON_HOST)
_FULL = (
    Tier("full", "full fine-tuning was asked for; an fp32 copy of the weights keeps small updates"),
    Tier(
        "full", "pure 16-bit weights, because an fp32 copy does not fit; small updates may be lost", master_copy=False
    ),
    Tier(
        "full",
        "8-bit optimizer states on pure 16-bit weights, because 32-bit ones do not fit",
        optimizer=SMALL_OPTIMIZER,
        master_copy=False,
    ),
)


def _smaller(tier: Tier) -> tuple[Tier, ...]:
    because = "a smaller rank, because the default does not fit"
    return tuple(Tier(tier.method, because, rank, tier.optimizer, tier.offloads) for rank in SMALLER_RANKS)


def candidates(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Iterator[RunConfig]:
    """Every configuration of ``tier`` that keeps the global batch exactly and honours the pins."""
    pins = request.pins
    base = {**_fixed(tier, request, model, cluster), **pins}
    shardings = _choices(pins, "sharding", SHARDINGS if cluster.world_size > 1 else ("none", "zero2", "zero3"))
    offloads = _choices(pins, "offload", tier.offloads)
    checkpointing = _choices(pins, "gradient_checkpointing", (False, True))
    for sharding, offload, checkpoint in product(shardings, offloads, checkpointing):
        if cluster.world_size == 1 and offload == "none" and sharding != "none" and "sharding" not in pins:
            continue
        ranks = 1 if sharding == "none" else cluster.world_size
        if request.global_batch % ranks:
            continue
        if not tier.master_copy and str(sharding).startswith("zero"):
            continue  # DeepSpeed always keeps one
        for micro, accumulation in splits(request.global_batch // ranks, max(64, pins.get("micro_batch", 1))):
            if pins.get("micro_batch", micro) != micro or pins.get("accumulation", accumulation) != accumulation:
                continue
            yield RunConfig(
                **{
                    **base,
                    "sharding": sharding,
                    "offload": offload,
                    "gradient_checkpointing": checkpoint,
                    "micro_batch": micro,
                    "accumulation": accumulation,
                    "padding": pins.get("padding", micro > 1 and not pins.get("packing", False)),
                    **_full_precision(tier, str(sharding), base, pins),
                    "sync_each_batch": pins.get("sync_each_batch", accumulation > 1 and sharding in FSDP),
                }
            )


def _choices(pins: Mapping[str, Any], field: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return (pins[field],) if field in pins else values


def half_precision(cluster: Cluster) -> str:
    """The 16-bit dtype that every card computes in: bf16 from Ampere on, else fp16."""
    return "bf16" if all(gpu.bf16 for gpu in cluster.gpus) else "fp16"


def _fixed(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> dict[str, Any]:
    """Fields with one sensible value on these cards for this architecture."""
    on_cpu = cluster.gpus[0].kind == "cpu"
    half = half_precision(cluster)
    supports = model.layers[0].attention.supports
    return {
        "model": request.model,
        "method": tier.method,
        "lora_rank": tier.lora_rank,
        "optimizer": "adamw_torch" if on_cpu else tier.optimizer,
        "seq_len": request.seq_len,
        "weights_dtype": "fp32" if on_cpu else half,
        "precision": "none" if on_cpu else half,
        "attention": "sdpa" if "sdpa" in supports else "eager",
        "stack": "trl",
        "expandable_segments": not on_cpu,
    }


def _full_precision(tier: Tier, sharding: str, base: Mapping[str, Any], pins: Mapping[str, Any]) -> Mapping[str, Any]:
    """Loaded dtype and autocast of full fine-tuning, as far as they are not pinned.

    A master copy is loaded as fp32, or made by FSDP2 and ZeRO under mixed precision; without autocast there is none.
    """
    if tier.method != "full" or base["weights_dtype"] == "fp32":
        return {}
    chosen = {} if tier.master_copy else {"precision": "none"}
    if tier.master_copy and sharding in ("none", "ddp"):
        chosen = {"weights_dtype": "fp32"}
    return {name: value for name, value in chosen.items() if name not in pins}
