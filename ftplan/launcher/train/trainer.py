"""TRL's trainer, with the loss computed the way the configuration says."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from trl import SFTTrainer

from ftplan.launcher.train.model import cast_adapters
from ftplan.launcher.train.progress import Seen
from ftplan.spec import RunConfig


class PlannedTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` that honours ``loss_path`` and the adapters' dtype, fills the last batch, and counts what it sees.

    TRL 1.16 always computes the loss in chunks, from the hidden states, and never holds the logits. Loss path ``full``
    is transformers' own loss over all logits; ``liger`` is Liger's fused loss, which TRL switches off.

    ``samples`` counts the rows given, after packing and before filling. ``measure`` is called on every rank when a step
    is logged; what it returns is logged with it, so that every tracker gets it.
    """

    def __init__(self, *, config: RunConfig, global_batch: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._config = config
        self._chunked = config.loss_path == "chunked"
        cast_adapters(self.model, config)
        self.seen = Seen()
        self.measure: Callable[[], Mapping[str, float]] | None = None
        self.samples = len(self.train_dataset)
        self.train_dataset: Dataset = fill(self.train_dataset, global_batch, self.args.seed)
        if config.loss_path == "liger":
            self.args.liger_kernel_config = None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The loss of one micro-batch."""
        if self.model.training:
            rows, length = inputs["input_ids"].shape
            self.seen = self.seen.with_rows(rows, length, self.args.max_length)
        if self._chunked:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a training step with what was measured at it; anything else as it is."""
        if "loss" in logs and self.measure is not None:
            logs = {**logs, **self.measure()}
        super().log(logs, start_time)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Read the weights of a checkpoint; peft makes adapters fp32 while it loads them."""
        super()._load_from_checkpoint(*args, **kwargs)
        cast_adapters(self.model, self._config)


def fill(dataset: Dataset, global_batch: int, seed: int) -> Dataset:
    """``dataset`` with rows repeated until its length is a multiple of ``global_batch``.

    Otherwise the last step of an epoch is a smaller one, and how small depends on how the batch is split over ranks,
    micro-batches and accumulation: the same job would learn differently on another number of devices.
    """
    chosen = random.Random(seed)  # noqa: S311 - a reproducible choice, nothing secret
    rows = list(range(len(dataset)))
    lacking = -len(rows) % global_batch
    return dataset.select(rows + chosen.choices(rows, k=lacking)) if lacking else dataset
