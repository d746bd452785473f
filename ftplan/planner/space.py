"""What there is to choose from: generators of legal-looking configurations, tier by tier of quality.

A tier is a promise about the result's quality: a lower tier is looked at only when no configuration of a higher one
fits. Inside a tier everything gives the same model, so that speed may decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from ftplan.planner.batch import splits
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.spec import PlanRequest, RunConfig

DEFAULT_RANK: Final = 16
SMALLER_RANKS: Final = (8, 4)
HIGHER_RANKS: Final = (256, 128, 64, 32)
DEFAULT_PROMPTED_LAYERS: Final = RunConfig.model_fields["adapter_layers"].default
DEFAULT_TARGETS: Final = "all-linear"
FEWEST_TARGETS: Final = "qv"
OPTIMIZER: Final = "adamw_torch_fused"
EIGHT_BIT_OPTIMIZER: Final = "adamw_bnb_8bit"
PAGED_OPTIMIZER: Final = "paged_adamw_8bit"
LARGEST_MICRO_BATCH: Final = 64
SHARDINGS: Final = ("ddp", "fsdp2", "fsdp2-grad-op", "hsdp", "zero1", "zero2", "zero3")
FSDP: Final = ("fsdp2", "fsdp2-grad-op", "hsdp")
OFFLOADS: Final = ("none", "optimizer", "optimizer+params")
KERNELS: Final = ("none", "liger")


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
    lora_targets: str = DEFAULT_TARGETS


@dataclass(frozen=True, slots=True)
class Family:
    """Configurations that differ only in how a rank's samples are split, by rising micro-batch.

    A larger micro-batch of a family never needs less memory: those that accumulate and the one that does not are two
    families, because accumulating costs memory of its own.
    """

    smallest: RunConfig
    splits: tuple[tuple[int, int], ...]
    pads: bool

    def members(self) -> Iterator[RunConfig]:
        """Each configuration. All but the split was validated with the smallest."""
        for micro, accumulation in self.splits:
            batch = {"micro_batch": micro, "accumulation": accumulation}
            if self.pads:
                batch["padding"] = micro > 1
            yield self.smallest.model_copy(update=batch)


def tiers(request: PlanRequest) -> tuple[Tier, ...]:
    """The tiers for the requested method, best first; tiers that differ only in what is pinned are one."""
    by_method = {
        "full": _FULL,
        "lora": (_LORA, *_smaller(_LORA), *_on_host(_LORA)),
        "qlora": (_QLORA, *_smaller(_QLORA), *_on_host(_QLORA)),
        "llama-adapter": (_PROMPTS,),
        "auto": (_LORA, _QLORA, *_smaller(_QLORA), *_on_host(_QLORA), *_on_host(_LORA)),
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
        None if "lora_targets" in pins else tier.lora_targets,
        None if "optimizer" in pins else tier.optimizer,
        None if "offload" in pins else tier.offloads,
        None if "weights_dtype" in pins else tier.master_copy,
    )


_ON_DEVICE: Final = ("none", "optimizer")
_LORA = Tier("lora", "16-bit LoRA keeps the base weights exact: the first choice where it fits", offloads=_ON_DEVICE)
_QLORA = Tier("qlora", "4-bit base weights, because 16-bit LoRA does not fit", offloads=_ON_DEVICE)
_PROMPTS = Tier(
    "llama-adapter", "LLaMA-Adapter was asked for: prompts and gates in the last layers", offloads=_ON_DEVICE
)
_FULL = (
    Tier("full", "full fine-tuning was asked for; an fp32 copy of the weights keeps small updates"),
    Tier(
        "full",
        "8-bit optimizer states, because 32-bit ones do not fit: as good in most runs, noisier where gradients are "
        "rare (Dettmers et al. 2022); the weights keep fp32",
        optimizer=EIGHT_BIT_OPTIMIZER,
    ),
    Tier(
        "full", "pure 16-bit weights, because an fp32 copy does not fit; small updates may be lost", master_copy=False
    ),
    Tier(
        "full",
        "8-bit optimizer states, paged to the host under pressure, on pure 16-bit weights, because nothing better "
        "fits; small updates may be lost",
        optimizer=PAGED_OPTIMIZER,
        master_copy=False,
    ),
)


def _smaller(tier: Tier) -> tuple[Tier, ...]:
    """Fewer adapters: smaller ranks, then only the two projections that LoRA began with."""
    because = "a smaller rank, because the default does not fit"
    ranks = tuple(replace(tier, because=because, lora_rank=rank) for rank in SMALLER_RANKS)
    fewest = "adapters on query and value only, because those on every linear layer do not fit"
    return (*ranks, replace(tier, because=fewest, lora_rank=SMALLER_RANKS[0], lora_targets=FEWEST_TARGETS))


def _on_host(tier: Tier) -> tuple[Tier, ...]:
    what = "4-bit weights" if tier.method == "qlora" else "base weights"
    because = f"{what} on the host: nothing fits on the cards"
    first = replace(tier, because=because, offloads=("optimizer+params",))
    return (first, *_smaller(first))


def families(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Iterator[Family]:
    """Every family of ``tier`` that keeps the global batch exactly and honours the pins."""
    pins = request.pins
    base = {**_fixed(tier, request, model, cluster), **pins}
    choices = (
        _choices(pins, "sharding", _shardings(cluster)),
        _choices(pins, "offload", tier.offloads),
        _choices(pins, "gradient_checkpointing", (False, True)),
        _kernels(pins, cluster),
    )
    for sharding, offload, checkpointing, kernels in product(*choices):
        if _is_pointless(tier, sharding, offload, pins, cluster):
            continue
        chosen = {
            "sharding": sharding,
            "offload": offload,
            "gradient_checkpointing": checkpointing,
            "kernels": kernels,
            **_full_precision(tier, str(sharding), base, pins),
        }
        yield from _split(request, base | chosen, 1 if sharding == "none" else cluster.world_size)


def candidates(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Iterator[RunConfig]:
    """Every configuration of ``tier``."""
    for family in families(tier, request, model, cluster):
        yield from family.members()


def _split(request: PlanRequest, fields: Mapping[str, Any], ranks: int) -> Iterator[Family]:
    """The families of one choice of everything but the batch: those that accumulate, and the one that does not."""
    pins = request.pins
    if request.global_batch % ranks:
        return
    largest = max(LARGEST_MICRO_BATCH, pins.get("micro_batch", 1))
    possible = [
        (micro, accumulation)
        for micro, accumulation in splits(request.global_batch // ranks, largest)
        if pins.get("micro_batch", micro) == micro and pins.get("accumulation", accumulation) == accumulation
    ]
    pads = "padding" not in pins and not pins.get("packing", False)
    for accumulates in (True, False):
        chosen = tuple(sorted(split for split in possible if (split[1] > 1) == accumulates))
        if not chosen:
            continue
        micro, accumulation = chosen[0]
        smallest = RunConfig(
            **{
                **fields,
                "micro_batch": micro,
                "accumulation": accumulation,
                "padding": pins.get("padding", micro > 1 and pads),
                "sync_each_batch": pins.get("sync_each_batch", accumulates and fields["sharding"] in FSDP),
            }
        )
        yield Family(smallest, chosen, pads)


def _shardings(cluster: Cluster) -> tuple[str, ...]:
    return SHARDINGS if cluster.world_size > 1 else ("none", "zero2", "zero3")


def _is_pointless(tier: Tier, sharding: str, offload: str, pins: Mapping[str, Any], cluster: Cluster) -> bool:
    """Whether another configuration does the same with less: nobody would ask why it was not chosen."""
    if cluster.world_size == 1 and offload == "none" and sharding != "none" and "sharding" not in pins:
        return True
    if not tier.master_copy and sharding.startswith("zero"):
        return True  # DeepSpeed always keeps one
    # bitsandbytes' states are those of whole tensors: sharded ones are smaller still.
    return tier.method == "full" and tier.optimizer == EIGHT_BIT_OPTIMIZER and sharding not in ("none", "ddp")


def _choices(pins: Mapping[str, Any], field: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return (pins[field],) if field in pins else values


def _kernels(pins: Mapping[str, Any], cluster: Cluster) -> tuple[Any, ...]:
    """Liger's kernels bring their own loss: a loss path that is asked for decides."""
    if "kernels" in pins or cluster.gpus[0].kind == "cpu":
        return (pins.get("kernels", "none"),)
    if "loss_path" in pins:
        return ("liger" if pins["loss_path"] == "liger" else "none",)
    return KERNELS


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
        "lora_targets": tier.lora_targets,
        "optimizer": "adamw_torch" if on_cpu else tier.optimizer,
        "seq_len": request.seq_len,
        "weights_dtype": "fp32" if on_cpu else half,
        "precision": "none" if on_cpu else half,
        "attention": "sdpa" if "sdpa" in supports else "eager",
        "stack": "trl",
        "expandable_segments": not on_cpu,
        **(_prompts(request, model) if tier.method == "llama-adapter" else {}),
    }


def _prompts(request: PlanRequest, model: ModelProfile) -> Mapping[str, Any]:
    """LLaMA-Adapter's usual layers, or all of a smaller model; its prompts in fp32 where autocast runs.

    peft makes prompts of 16-bit weights in their dtype, in which updates of values around 1 below 0.004 would be lost.
    """
    layers = {"adapter_layers": min(DEFAULT_PROMPTED_LAYERS, model.layer_count)}
    return layers if request.pins.get("precision") == "none" else {**layers, "adapter_dtype": "fp32"}


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
