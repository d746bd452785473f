"""What to train with after a plan ran out of memory: the smallest change that keeps what is trained and the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ftplan.planner.mending import mended
from ftplan.planner.rules import package_rejection
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Estimate
from ftplan.spec import RunConfig

LESS: Final = 0.05
"""Part of what the failed configuration was told to need by which the next one has to need less.

Estimates of real processes are off by up to a few percent (benchmarks/data); a step below that would fail again.
"""
LARGEST_MARGIN: Final = 0.95

Fallback = tuple[RunConfig, Estimate]


def fallback(
    config: RunConfig,
    told: Estimate,
    model: ModelProfile,
    cluster: Cluster,
    *,
    margin: float,
    same_sharding: bool,
    missing_packages: tuple[str, ...] = (),
    allowed: Callable[[RunConfig], bool] = lambda _: True,
) -> Fallback | None:
    """The next configuration after ``config``, of which ``told`` was the estimate, has run out of memory.

    It trains the same weights with the same global batch, is the fastest of the smallest changes, and needs less by
    `LESS` at least. With ``same_sharding`` a checkpoint of ``config`` can be resumed with it; one process of several
    devices stays one. It needs none of ``missing_packages`` and is ``allowed``. None if nothing is left.
    """
    same_sharding = same_sharding or (config.sharding == "none" and cluster.world_size > 1)
    capacity = min(gpu.usable_bytes for gpu in cluster.gpus)
    room = min((1 - margin) * capacity, (1 - LESS) * told.needed_bytes)
    found = mended(
        config,
        model,
        cluster,
        margin=min(LARGEST_MARGIN, 1 - room / capacity),
        allowed=lambda other: (
            package_rejection(other, missing_packages) is None
            and (not same_sharding or _sharded_alike(other, config))
            and allowed(other)
        ),
    )
    return next(((one.config, one.estimate) for one in found if one.keeps_result), None)


def _sharded_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether one reads the checkpoints of the other: those of FSDP2 are the same, whatever it keeps whole."""
    forms = [each.sharding.removesuffix("-grad-op") for each in (one, other)]
    return forms[0] == forms[1] and one.offload == other.offload
