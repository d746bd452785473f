"""What a configuration that runs pays without need: sharding, offload, recomputation, small micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ftplan.estimators.analytic import estimate
from ftplan.planner.mending import Allowed, Move
from ftplan.planner.rules import first_rejection
from ftplan.planner.search import without_collections
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Estimate
from ftplan.spec import RunConfig

WORTH_TELLING: Final = 0.05
"""Estimates of a step are no better than a tenth; less than half of that is not worth a word."""
WORTH_LESS_MACHINERY: Final = -0.03
"""Less sharding or no offload is told where it is as fast, too, as far as estimates of a step can tell."""
LARGEST_MICRO_BATCH: Final = 64


@dataclass(frozen=True)
class Waste:
    """A change that fits too and is faster: ``speed_ratio`` times the tokens per second."""

    topic: str
    move: Move
    config: RunConfig
    estimate: Estimate
    speed_ratio: float


def wasted(
    config: RunConfig,
    told: Estimate,
    model: ModelProfile,
    cluster: Cluster,
    *,
    margin: float,
    allowed: Allowed = lambda _: True,
) -> tuple[Waste, ...]:
    """Changes that keep the trained model and the global batch, fit, and are clearly faster; the best of each topic."""
    best: dict[str, Waste] = {}
    with without_collections():
        for topic, move in _lighter(config):
            changed = _valid(config, move)
            if changed is None or first_rejection(changed, model, cluster) is not None or not allowed(changed):
                continue
            found = estimate(changed, model, cluster, margin=margin)
            ratio = found.tokens_per_second / told.tokens_per_second
            known = best.get(topic)
            least = WORTH_LESS_MACHINERY if topic in ("sharding", "offload") else WORTH_TELLING
            if not found.fits or ratio < 1 + least or (known is not None and known.speed_ratio >= ratio):
                continue
            best[topic] = Waste(topic, move, changed, found, ratio)
        confirmed = [_confirmed(one, model, cluster, margin) for one in best.values()]
    fitting = [one for one in confirmed if one.estimate.fits]
    return tuple(sorted(fitting, key=lambda one: -one.speed_ratio))


def _confirmed(one: Waste, model: ModelProfile, cluster: Cluster, margin: float) -> Waste:
    told = estimate(one.config, model, cluster, margin=margin, replays=True)
    return Waste(one.topic, one.move, one.config, told, one.speed_ratio)


def _valid(config: RunConfig, move: Move) -> RunConfig | None:
    try:
        changed = RunConfig.model_validate({**config.model_dump(), **move.fields})
    except ValueError:
        return None
    padded = (config.padding or config.micro_batch == 1) and not config.packing
    return changed.model_copy(update={"padding": changed.micro_batch > 1}) if padded else changed


def _lighter(config: RunConfig) -> Iterator[tuple[str, Move]]:
    if config.gradient_checkpointing:
        yield "checkpointing", Move("no activation checkpointing", {"gradient_checkpointing": False})
    if config.offload != "none":
        fields = {"offload": "none"}
        yield "offload", Move("no offload", fields)
    lighter = {
        "zero3": ("ddp", "zero1", "zero2"),
        "fsdp2": ("ddp", "fsdp2-grad-op"),
        "fsdp2-grad-op": ("ddp",),
        "hsdp": ("ddp",),
        "zero2": ("ddp",),
        "zero1": ("ddp",),
    }
    for sharding in lighter.get(config.sharding, ()):
        what = "DDP" if sharding == "ddp" else sharding.upper().replace("ZERO", "ZeRO-")
        changed = {"sharding": sharding, "offload": "none", "sync_each_batch": False}
        yield "sharding", Move(f"{what} in place of {config.sharding}", changed)
    whole = config.micro_batch * config.accumulation
    for micro in range(config.micro_batch + 1, min(whole, LARGEST_MICRO_BATCH) + 1):
        if whole % micro == 0:
            what = f"micro-batch {micro} with {whole // micro} accumulation steps"
            yield "micro-batch", Move(what, {"micro_batch": micro, "accumulation": whole // micro})
    if config.attention == "eager":
        yield "attention", Move("fused attention (sdpa)", {"attention": "sdpa"})
