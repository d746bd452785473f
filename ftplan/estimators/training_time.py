"""Time and cost of a whole training, from the time of a step.

Evaluation, saving and loading are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ftplan.estimators.step_time import step_time
from ftplan.estimators.workload import Place, Workload
from ftplan.profiles.device_schema import Cluster, GpuProfile
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Estimate, TrainingTime
from ftplan.spec import RunConfig, TrainingRequest
from ftplan.units import HOUR_SECONDS, ceil_div


def with_training(
    estimated: Estimate, request: TrainingRequest, config: RunConfig, model: ModelProfile | None, cluster: Cluster
) -> Estimate:
    """``estimated`` with the time and cost of ``request``; without a profile, steps are as long as the estimate's."""
    shorter = config.model_copy(update={"seq_len": sample_tokens(config, request)})
    step_seconds = estimated.step_seconds
    if model is not None and shorter.seq_len < config.seq_len:
        step_seconds = step_time(Workload(shorter, model, cluster)).total_seconds
    return replace(estimated, training=training_time(request, Place(config, cluster), step_seconds))


def training_time(request: TrainingRequest, place: Place, step_seconds: float) -> TrainingTime:
    """Steps, time and cost of ``request`` with steps of ``step_seconds``; an epoch's last one counts as whole."""
    config = place.config
    global_batch = config.micro_batch * config.accumulation * place.world
    steps = optimizer_steps(sequences(config, request), global_batch, request.epochs)
    seconds = steps * step_seconds
    prices = device_prices(place.gpus, request.price)
    known = [price for price in prices if price is not None]
    return TrainingTime(
        steps=steps,
        step_seconds=step_seconds,
        seconds=seconds,
        device_seconds=seconds * place.world,
        dollars=seconds / HOUR_SECONDS * sum(known) if len(known) == len(prices) else None,
        notes=_notes(request, place),
    )


def optimizer_steps(sequences: int, global_batch: int, epochs: float) -> int:
    """Optimizer steps as transformers' Trainer counts them: an epoch's last step takes what is left.

    ``set_initial_training_values`` (transformers 5.23, trainer.py): ``max_steps = ceil(num_train_epochs *
    ceil(batches / gradient_accumulation_steps))``. Without ``dataloader_drop_last`` a rank's batches are
    ceil(ceil(sequences / micro-batch) / ranks), because accelerate evens them out (``BatchSamplerShard.__len__``,
    data_loader.py); the nested ceilings are one division by the global batch.
    """
    return math.ceil(epochs * ceil_div(sequences, global_batch))


def sequences(config: RunConfig, request: TrainingRequest) -> int:
    """Rows of an epoch: the samples, or what they fill when packed without gaps and cut at ``seq_len``.

    TRL's best-fit packing leaves gaps, so that it makes a few rows more.
    """
    if not config.packing or request.mean_tokens is None:
        return request.samples
    return math.ceil(request.samples * request.mean_tokens / config.seq_len)


def sample_tokens(config: RunConfig, request: TrainingRequest) -> int:
    """Tokens of a row in a step: ``seq_len`` where rows are packed or padded to it, else those of a mean sample."""
    if config.packing or config.padding or request.mean_tokens is None:
        return config.seq_len
    return min(config.seq_len, math.ceil(request.mean_tokens))


def device_prices(gpus: Sequence[GpuProfile], price: float | None) -> tuple[float | None, ...]:
    """Dollars of an hour of each device: ``price`` for all if it is given, else the profiles'."""
    return tuple(gpu.dollars_per_hour if price is None else price for gpu in gpus)


def _notes(request: TrainingRequest, place: Place) -> tuple[str, ...]:
    notes = ["evaluation, saving and loading are not counted in the training time"]
    if request.mean_tokens is None:
        notes.append(f"a sample counts as {place.config.seq_len} tokens, because no mean length was given")
    if request.price is None:
        unpriced = sorted({gpu.name for gpu in place.gpus if gpu.dollars_per_hour is None})
        known = "prices are typical ones from the devices' profiles; providers differ two-fold"
        notes.append(f"no price is known for {', '.join(unpriced)}, so no cost" if unpriced else known)
    return tuple(notes)
