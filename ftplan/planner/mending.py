"""The smallest changes that make a configuration fit: one at a time first, then two, then three.

Every change keeps the global batch. Those that keep what is trained come before those that change it; each answer was
estimated, and those that are told were played through the simulated allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from ftplan.estimators.analytic import estimate, held_bytes
from ftplan.planner.rules import first_rejection, trains_in_fp16
from ftplan.planner.search import without_collections
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Estimate
from ftplan.spec import RunConfig

MOST_CHANGES: Final = 4
MOST_FIXES: Final = 5
REPLAYED: Final = 8
"""Candidates of one size that the simulated allocator is asked about; each takes up to a second."""
PACKAGED_BITS: Final = "adamw_bnb_8bit"


@dataclass(frozen=True)
class Move:
    """One change: in words, the fields that it sets, and whether the trained model stays the same."""

    what: str
    fields: Mapping[str, Any]
    keeps_result: bool = True

    @property
    def subject(self) -> str:
        """What it is about: two moves of one subject exclude each other."""
        return "method" if "method" in self.fields else next(iter(self.fields))


@dataclass(frozen=True)
class Mended:
    """A configuration that fits, with the moves that led to it."""

    moves: tuple[Move, ...]
    config: RunConfig
    estimate: Estimate

    @property
    def keeps_result(self) -> bool:
        """Whether the trained model stays the same."""
        return all(move.keeps_result for move in self.moves)


Allowed = Callable[[RunConfig], bool]


def mended(
    config: RunConfig, model: ModelProfile, cluster: Cluster, *, margin: float, allowed: Allowed = lambda _: True
) -> tuple[Mended, ...]:
    """The smallest changes after which ``config`` fits, fastest first; empty where no four of them suffice.

    ``allowed`` says which configurations may be proposed at all: those that a file can express, say.
    """
    with without_collections():
        return tuple(_Mending(config, model, cluster, margin, allowed).answers())


class _Mending:
    """One search for the smallest changes; what was estimated is kept for the next look at it."""

    def __init__(
        self, config: RunConfig, model: ModelProfile, cluster: Cluster, margin: float, allowed: Allowed
    ) -> None:
        self.config = config
        self.model = model
        self.cluster = cluster
        self.margin = margin
        self.allowed = allowed
        self.required: tuple[Move, ...] = ()
        self.room = min(gpu.usable_bytes for gpu in cluster.gpus) * (1 - margin)
        self.told: dict[RunConfig, Estimate | None] = {}

    def answers(self) -> list[Mended]:
        """Those that keep what is trained, else those that do not; else those that need more RAM than was assumed."""
        moves = [*_moves(self.config, self.model, self.cluster)]
        self.required = (*_required(self.config, self.model, self.cluster),)
        keeping = [move for move in moves if move.keeps_result]
        assumed = any(node.host.memory_assumed for node in self.cluster.nodes)
        for fits in (_fits, _fits_devices)[: 1 + assumed]:
            for candidates in (keeping, moves):
                for size in range(0 if self.required else 1, MOST_CHANGES + 1):
                    found = self._of_size(size, candidates, fits)
                    if found:
                        return found[:MOST_FIXES]
        return []

    def _of_size(self, size: int, moves: Sequence[Move], fits: Callable[[Estimate], bool]) -> list[Mended]:
        """What fits after so many moves: the fastest of the fit, confirmed by the simulated allocator."""
        promising = []
        for others in combinations(moves, size):
            chosen = (*self.required, *others)
            if len({move.subject for move in chosen}) < len(chosen):
                continue
            changed = _changed(self.config, chosen)
            told = self._estimate(changed) if changed is not None else None
            if changed is not None and told is not None and fits(told) and self.allowed(changed):
                promising.append(Mended(chosen, changed, told))
        promising.sort(key=lambda one: (not one.keeps_result, _gives_up(one), -one.estimate.tokens_per_second))
        confirmed: list[Mended] = []
        for one in _spread(promising):
            told = estimate(one.config, self.model, self.cluster, margin=self.margin, replays=True)
            if fits(told):
                confirmed.append(Mended(one.moves, one.config, told))
            if len(confirmed) >= MOST_FIXES:
                break
        return sorted(confirmed, key=lambda one: (_gives_up(one), -one.estimate.tokens_per_second))

    def _estimate(self, changed: RunConfig) -> Estimate | None:
        """The estimate; None for what a rule rejects, and for weights and states that are too large by themselves."""
        if changed not in self.told:
            told = None
            legal = first_rejection(changed, self.model, self.cluster) is None
            if legal and held_bytes(changed, self.model, self.cluster) <= self.room:
                told = estimate(changed, self.model, self.cluster, margin=self.margin)
            self.told[changed] = told
        return self.told[changed]


def _fits(told: Estimate) -> bool:
    return told.fits


def _fits_devices(told: Estimate) -> bool:
    return all(rank.fits for rank in told.ranks)


def _gives_up(one: Mended) -> int:
    """How much of what was asked for is given up: nothing, a shorter rank or sample, the method."""
    subjects = {move.subject for move in one.moves if not move.keeps_result}
    return 2 if "method" in subjects else int(bool(subjects))


def _spread(found: Sequence[Mended]) -> Iterator[Mended]:
    """At most `REPLAYED`, the first of every set of subjects before another of the same."""
    seen: dict[frozenset[str], int] = {}
    ordered: list[tuple[int, int, Mended]] = []
    for one in found:
        subjects = frozenset(move.subject for move in one.moves)
        seen[subjects] = seen.get(subjects, 0) + 1
        ordered.append((seen[subjects], len(ordered), one))
    yield from (one for turn, _, one in sorted(ordered, key=lambda each: each[:2])[:REPLAYED] if turn <= 2)


def _changed(config: RunConfig, moves: Sequence[Move]) -> RunConfig | None:
    fields = {name: value for move in moves for name, value in move.fields.items()}
    if "kernels" in fields:
        fields["loss_path"] = "liger"
    try:
        changed = RunConfig.model_validate({**config.model_dump(), **fields})
    except ValueError:
        return None
    padded = config.padding or config.micro_batch == 1
    return changed.model_copy(update={"padding": changed.micro_batch > 1}) if padded and not config.packing else changed


def _required(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Iterator[Move]:
    """What has to change whatever else does: the dtype on cards that have no arithmetic for it."""
    lacks = any(not gpu.bf16 for gpu in cluster.gpus)
    fields = {name: "fp16" for name in ("precision", "weights_dtype") if getattr(config, name) == "bf16"}
    if lacks and fields:
        if trains_in_fp16(config.model_copy(update=fields), model, cluster) is not None:
            fields["weights_dtype"] = "fp32"
        yield Move("fp16 in place of bf16", fields)


def _moves(config: RunConfig, model: ModelProfile, cluster: Cluster) -> Iterator[Move]:
    """Every single change that can lower memory."""
    on_cpu = cluster.gpus[0].kind == "cpu"
    if not config.gradient_checkpointing:
        yield Move("activation checkpointing", {"gradient_checkpointing": True})
    yield from _smaller_batches(config)
    if not on_cpu:
        if not config.expandable_segments:
            yield Move("expandable segments", {"expandable_segments": True})
        if config.kernels == "none":
            yield Move("Liger's kernels", {"kernels": "liger"})
    if config.optimizer == "adamw_torch" and not on_cpu:
        yield Move("a fused optimizer step, which makes no temporaries", {"optimizer": "adamw_torch_fused"})
    if config.attention == "eager" and "sdpa" in model.layers[0].attention.supports:
        yield Move("fused attention (sdpa)", {"attention": "sdpa"})
    yield from _shardings(config, cluster)
    yield from _lesser_results(config)


def _smaller_batches(config: RunConfig) -> Iterator[Move]:
    """Micro-batches that divide the present one, with as much more accumulation."""
    whole = config.micro_batch * config.accumulation
    for micro in range(config.micro_batch - 1, 0, -1):
        if whole % micro == 0:
            what = f"micro-batch {micro} with {whole // micro} accumulation steps"
            yield Move(what, {"micro_batch": micro, "accumulation": whole // micro})


SHARDED: Final = {
    "none": ("zero2", "zero3"),
    "ddp": ("zero1", "zero2", "zero3", "fsdp2-grad-op", "fsdp2"),
    "zero1": ("zero2", "zero3"),
    "zero2": ("zero3",),
    "zero3": (),
    "fsdp2-grad-op": ("fsdp2",),
    "hsdp": ("fsdp2",),
    "fsdp2": (),
}
"""What splits more than each sharding does, the least machinery first."""


def _shardings(config: RunConfig, cluster: Cluster) -> Iterator[Move]:
    several = cluster.world_size > 1 and config.sharding != "none"
    current = config.sharding if several or config.sharding != "ddp" else "none"
    for sharding in SHARDED[current] if several else ():
        fsdp = sharding.startswith("fsdp") and config.accumulation > 1
        yield Move(SHARDING_NAMES[sharding], {"sharding": sharding, "sync_each_batch": fsdp})
        if sharding == "zero3" or sharding == "fsdp2":
            fields = {"sharding": sharding, "sync_each_batch": fsdp, "offload": "optimizer+params"}
            yield Move(f"{SHARDING_NAMES[sharding]} with parameters and optimizer on the host", fields)
    if config.offload == "none" and config.sharding in ("zero1", "zero2", "zero3"):
        yield Move("the optimizer on the host", {"offload": "optimizer"})
    if config.offload != "optimizer+params" and config.sharding in ("zero3", "fsdp2", "fsdp2-grad-op"):
        yield Move("parameters and optimizer on the host", {"offload": "optimizer+params"})
    if not several and config.offload == "none":
        for sharding, offload in (("zero2", "optimizer"), ("zero3", "optimizer+params")):
            what = "the optimizer on the host" if offload == "optimizer" else "parameters and optimizer on the host"
            yield Move(f"{what} (DeepSpeed)", {"sharding": sharding, "offload": offload})


SHARDING_NAMES: Final = {
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "fsdp2": "FSDP2",
    "fsdp2-grad-op": "FSDP2 without resharding after the forward",
}


def _lesser_results(config: RunConfig) -> Iterator[Move]:
    """Changes to what is trained, in the order in which one would give things up."""
    if config.method == "full" and "8bit" not in config.optimizer:
        yield Move("8-bit optimizer states", {"optimizer": PACKAGED_BITS}, keeps_result=False)
    if config.trains_lora:
        rank = config.lora_rank // 2
        if rank >= 4:
            yield Move(f"LoRA rank {rank}", {"lora_rank": rank, "lora_alpha": 2 * rank}, keeps_result=False)
    if config.seq_len > 512:
        yield Move(f"samples of {config.seq_len // 2} tokens", {"seq_len": config.seq_len // 2}, keeps_result=False)
    if config.method == "lora":
        quantized = {"method": "qlora", "quantization": "nf4", "double_quantization": True}
        yield Move("4-bit base weights (QLoRA)", quantized, keeps_result=False)
    if config.method == "full":
        yield Move("LoRA in place of full fine-tuning", {"method": "lora"}, keeps_result=False)
        quantized = {"method": "qlora", "quantization": "nf4", "double_quantization": True}
        yield Move("QLoRA in place of full fine-tuning", quantized, keeps_result=False)
