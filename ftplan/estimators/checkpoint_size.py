"""Bytes on disk of what a run writes: each checkpoint it can resume from, and the result at its end.

P counts all parameters, T the trainable ones. Read in transformers 5.23 (Trainer._save_checkpoint), accelerate 1.15
(utils/fsdp_utils.py) and DeepSpeed 0.19.8 (runtime/engine.py), and compared with what runs of the demo wrote. Left out:
the history of losses in trainer_state.json, some hundred bytes a logged step, and TensorBoard's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ftplan.estimators.params import trainable_tensor_count
from ftplan.estimators.states import FP32, optimizer_cost, whole_optimizer_states, whole_weight_bytes
from ftplan.estimators.workload import Workload

TENSOR_ENTRY_BYTES: Final = 230
"""What torch.save adds to each tensor: its record, header and name (measured: 215 to 270)."""

RANK_BYTES: Final = 15_000
"""The state of one rank's random generators (measured: 14,455 without a GPU)."""

SMALL_FILES_BYTES: Final = 16_000
"""Scheduler, arguments, configuration, manifest and model card (measured: 11 to 17 KB)."""

ZERO_SCRIPTS_BYTES: Final = 41_070
"""zero_to_fp32.py and zero_to_torch.py, which DeepSpeed puts into every checkpoint."""

ZERO_ENTRY_BYTES: Final = 700
"""What the engine's own state tells of each trained tensor beside its values: names, shapes, places (measured: 500 to
900); ZeRO-3 writes it for every rank."""

TOKENIZER_ENTRY_BYTES: Final = 128
"""Bytes of tokenizer.json for each word of the vocabulary, merges included, where the file itself is not at hand."""


@dataclass(frozen=True, slots=True)
class CheckpointSize:
    """Bytes of one checkpoint by what they hold, all files of all ranks together, and of the result.

    ``weights_bytes`` counts every copy; ``optimizer_bytes`` the states with DeepSpeed's fp32 masters.
    """

    weights_bytes: int
    optimizer_bytes: int
    other_bytes: int
    final_bytes: int

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint."""
        return self.weights_bytes + self.optimizer_bytes + self.other_bytes

    def run_bytes(self, keep: int) -> int:
        """The most that a run has on disk: a checkpoint is complete before the oldest of ``keep`` goes."""
        return (keep + 1) * self.checkpoint_bytes + self.final_bytes


def checkpoint_size(work: Workload, *, tokenizer_bytes: int | None = None) -> CheckpointSize:
    """What a run of ``work`` writes; ``tokenizer_bytes`` is the size of its tokenizer's files, where known."""
    if tokenizer_bytes is None:
        tokenizer_bytes = TOKENIZER_ENTRY_BYTES * work.model.vocab_size
    saved = _trained_bytes(work)
    other = tokenizer_bytes + SMALL_FILES_BYTES
    return CheckpointSize(
        weights_bytes=_copies(work) * saved + _tied_again(work),
        optimizer_bytes=_optimizer_bytes(work),
        other_bytes=other + work.world * RANK_BYTES + _engine_bytes(work),
        final_bytes=saved + other,
    )


def _trained_bytes(work: Workload) -> int:
    """All weights, P elements, or the adapters, T elements, in the dtype they train in.

    FSDP2 trains in fp32 under mixed precision and saves that; DeepSpeed saves its 16-bit copy.
    """
    if work.trains_all:
        return whole_weight_bytes(work)
    return work.trainable * work.trainable_bytes


def _copies(work: Workload) -> int:
    """ZeRO-1 and 2 save what trains twice: for ``from_pretrained``, and with the engine's own state."""
    return 2 if work.zero_stage in (1, 2) else 1


def _tied_again(work: Workload) -> int:
    """torch's distributed checkpoint writes a tied head once more, by its own name."""
    if not (work.is_fsdp and work.trains_all and work.model.tied):
        return 0
    return work.model.embedding_params * work.trainable_bytes


def _optimizer_bytes(work: Workload) -> int:
    """States as the optimizer has them, and DeepSpeed's fp32 copy, 4 T."""
    cost = optimizer_cost(work.config.optimizer)
    master = FP32 * work.trainable if work.zero_stage else 0
    tensors = 0 if work.zero_stage else trainable_tensor_count(work.model, work.config)
    entries = tensors * _tensors_of_each(cost.moments, factored=cost.factored)
    return whole_optimizer_states(work) + master + entries * TENSOR_ENTRY_BYTES


def _engine_bytes(work: Workload) -> int:
    """What DeepSpeed writes beside values."""
    if not work.zero_stage:
        return 0
    writers = work.world if work.zero_stage == 3 else 1
    return ZERO_SCRIPTS_BYTES + writers * ZERO_ENTRY_BYTES * trainable_tensor_count(work.model, work.config)


def _tensors_of_each(moments: int, *, factored: bool) -> int:
    """Tensors that are saved for each one that trains: its moments and the count of steps; none without moments."""
    return 3 if factored else moments + 1 if moments else 0
