"""What a user should weigh beside the plan: the learning rate of another batch, cards that wait, packing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from ftplan.estimators.analytic import estimate
from ftplan.estimators.training_time import with_training
from ftplan.planner.ranking import estimate_of
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Advice, Candidate
from ftplan.spec import FormerBatch, PlanRequest, RunConfig

ADAPTIVE: Final = ("adam", "lion", "adafactor")
"""Optimizers whose update does not grow with the gradient, by a part of their names."""

PACKING_PAYS: Final = 0.9
"""Packing is worth a word where it takes at most this part of the time."""


def advise(chosen: Candidate, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> tuple[Advice, ...]:
    """Everything there is to say about a plan beside its reasons."""
    config = chosen.config
    found = [*_batch(request, config), *_unequal(chosen, cluster)]
    if request.training is not None and request.training.mean_tokens is not None:
        found += _packing(chosen, request, model, cluster)
    return tuple(found)


def scaled_learning_rates(
    rate: float, samples: int, former_samples: int, optimizer: str
) -> tuple[str, dict[str, float]]:
    """The rule to scale a learning rate by when the batch changes, and what each rule gives.

    Linear for SGD (Goyal et al. 2017, arXiv 1706.02677); the square root for Adam and its kin, whose updates are
    normalised (Malladi et al. 2022, arXiv 2205.10287, "On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms").
    """
    ratio = samples / former_samples
    rule = "square root" if any(name in optimizer for name in ADAPTIVE) else "linear"
    return rule, {"linear": rate * ratio, "square root": rate * math.sqrt(ratio)}


def _batch(request: PlanRequest, config: RunConfig) -> Iterator[Advice]:
    """What happened to the batch of the configuration that this one replaces."""
    was = request.was
    if was is None:
        return
    yield from _moved(request, was, config)
    if was.samples != request.global_batch:
        yield _rate(request, was, config)


def _moved(request: PlanRequest, was: FormerBatch, config: RunConfig) -> Iterator[Advice]:
    """A configuration that was kept as it is on another number of devices has another batch."""
    now = 1 if config.sharding == "none" else request.inventory.world_size
    if was.gpus is None or was.micro_batch is None or was.accumulation is None or was.gpus == now:
        return
    unchanged = was.micro_batch * was.accumulation * now
    times = f"{unchanged / was.samples:.3g} times"
    steps = "fewer" if unchanged > was.samples else "more"
    is_kept = request.global_batch == unchanged
    makes = "makes" if is_kept else "would make"
    instead = (
        "" if is_kept else f"; micro-batch {config.micro_batch} x {config.accumulation} makes {request.global_batch}"
    )
    yield Advice(
        "batch",
        f"kept as it was, micro-batch {was.micro_batch} x {was.accumulation} {makes} a step of {unchanged} samples "
        f"on {now} devices, {times} the {was.samples} on {was.gpus}: {steps} steps an epoch, and a learning rate that "
        f"no longer fits{instead}",
        {
            "samples_before": was.samples,
            "samples_unchanged": unchanged,
            "samples": request.global_batch,
            "gpus_before": was.gpus,
            "gpus": now,
            "accumulation_before": was.accumulation,
            "accumulation": config.accumulation,
        },
    )


def _rate(request: PlanRequest, was: FormerBatch, config: RunConfig) -> Advice:
    samples = request.global_batch
    rate = was.learning_rate if was.learning_rate is not None else 1.0
    rule, rates = scaled_learning_rates(rate, samples, was.samples, config.optimizer)
    why = (
        f"{config.optimizer} normalises its updates (Malladi et al. 2022)"
        if rule == "square root"
        else "gradients average over the batch (Goyal et al. 2017)"
    )
    other = "linear" if rule == "square root" else "square root"
    times = "" if was.learning_rate is not None else "times "
    shown = {name: f"{times}{value:.3g}" for name, value in rates.items()}
    text = (
        f"the batch goes from {was.samples} to {samples} samples: {rule} scaling of the learning rate gives "
        f"{shown[rule]}, because {why}; {other} scaling would give {shown[other]}"
    )
    figures: dict[str, float] = {"samples_before": was.samples, "samples": samples}
    if was.learning_rate is not None:
        figures |= {"learning_rate_before": rate}
        figures |= {f"learning_rate_{name.replace(' ', '_')}": value for name, value in rates.items()}
    else:
        figures |= {f"factor_{name.replace(' ', '_')}": value for name, value in rates.items()}
    return Advice("learning_rate", text, figures)


def _unequal(chosen: Candidate, cluster: Cluster) -> Iterator[Advice]:
    """What the larger and the faster of unequal cards have to spare."""
    told = estimate_of(chosen)
    taking_part = cluster.gpus[: len(told.ranks)]
    if len({(gpu.name, gpu.usable_bytes) for gpu in taking_part}) < 2:
        return
    rates = [gpu.flops.get("bf16") or gpu.flops["fp32"] for gpu in taking_part]
    slowest = min(rates)
    free = sum(rank.capacity_bytes - rank.needed_bytes for rank in told.ranks)
    idle = 1 - slowest * len(rates) / sum(rates)
    yield Advice(
        "unequal_cards",
        f"every rank holds as much and each step waits for the slowest: {idle:.0%} of the cards' arithmetic is idle, "
        f"and {free / 2**30:.1f} GiB of their memory",
        {"idle_part": idle, "free_bytes": free},
    )


def _packing(chosen: Candidate, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Iterator[Advice]:
    """How much shorter the training would be if samples were joined to full rows."""
    training, config = request.training, chosen.config
    assert training is not None
    if config.packing or "packing" in request.pins or training.mean_tokens is None:
        return
    packed = config.model_copy(update={"packing": True, "padding": False})
    told = with_training(estimate(packed, model, cluster, margin=request.margin), training, packed, model, cluster)
    mine = estimate_of(chosen)
    if mine.training is None or told.training is None or not told.fits:
        return
    part = told.training.seconds / mine.training.seconds
    if part > PACKING_PAYS:
        return
    rows = config.seq_len / training.mean_tokens
    yield Advice(
        "packing",
        f"--packing would take {part:.0%} of the time: samples of {training.mean_tokens:g} tokens fill rows of "
        f"{config.seq_len}; a step then holds about {rows:.1f} times as many: lower the global batch to keep it",
        {"time_ratio": part, "samples_per_row": rows, "seconds": told.training.seconds},
    )
