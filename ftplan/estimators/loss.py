"""Logits and loss: T tokens by V vocabulary columns, by far the widest tensors of most runs.

Sources: transformers' loss/loss_utils.py (the logits are upcast to fp32), accelerate's convert_outputs_to_fp32, TRL's
SFTTrainer (fused head) and Liger's fused linear cross entropy; sizes checked on traces of the real code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ftplan.estimators.workload import Workload
from ftplan.units import ceil_div

FP32: Final = 4

TRL_TILE_TOKENS: Final = 4096
TRL_TILE_COLUMNS: Final = 32768
"""Rows and columns of the logits tile in TRL's fused head (trl 1.16 kernels/chunked_logprob.py, trainer/utils.py)."""


@dataclass(frozen=True, slots=True)
class LossMemory:
    """Bytes around the loss: in its forward, at the start of its backward, and in an evaluation step."""

    forward: int
    backward: int
    evaluation: int


def loss_memory(work: Workload) -> LossMemory:
    """Logits, their fp32 copy, log-probabilities and gradients, by loss path."""
    paths = {"full": _full, "chunked": _chunked, "liger": _liger}
    memory, copy = paths[work.config.loss_path](work), head_copy_bytes(work)
    return LossMemory(memory.forward + copy, memory.backward + copy, memory.evaluation + copy)


def head_copy_bytes(work: Workload) -> int:
    """Autocast's 16-bit copy of an fp32 head: fp32 weights, or prepare_model_for_kbit_training's upcast."""
    fp32_head = work.autocast and not work.is_fsdp and work.stream_bytes > work.compute_bytes
    return work.model.embedding_params * work.compute_bytes if fp32_head else 0


def _full(work: Workload) -> LossMemory:
    """Forward: logits e, fp32 copy 4, log-softmax 4. Backward: log-softmax 4 and two gradients of 4.

    A softcapped head (Gemma 2) keeps the tanh's output too.
    """
    logits = work.tokens * work.model.vocab_size
    capped = logits * work.compute_bytes if work.model.logits_softcap else 0
    head_gradient = work.model.embedding_params * work.gradient_bytes if work.trains_all else 0
    return LossMemory(
        forward=logits * (work.compute_bytes + 2 * FP32) + 2 * capped,
        backward=max(logits * 3 * FP32 + capped, logits * work.compute_bytes + head_gradient + capped),
        evaluation=logits * (work.compute_bytes + 2 * FP32) + 2 * capped,
    )


def _chunked(work: Workload) -> LossMemory:
    """One tile of logits at a time, recomputed in the backward; gradients of input and head accumulate in fp32.

    The head's fp32 gradient [V, H] is converted to the weight's dtype at the end, so that both exist for a moment.
    """
    model, element = work.model, work.compute_bytes
    tile = min(work.tokens, TRL_TILE_TOKENS) * min(model.vocab_size, TRL_TILE_COLUMNS) * element
    hidden = work.tokens * model.hidden_size
    head = model.embedding_params if work.trains_all else 0
    converted = element if work.is_fsdp else work.gradient_bytes
    backward = hidden * (element + FP32) + tile + head * (FP32 + converted)
    return LossMemory(hidden * element + tile, backward, hidden * element + tile)


def _liger(work: Workload) -> LossMemory:
    """Chunks of nextpow2(ceil(T / ceil(V / H))) rows; the forward makes the gradients of input and trained head."""
    model = work.model
    rows = liger_chunk_rows(work.tokens, model.vocab_size, model.hidden_size)
    chunk = rows * model.vocab_size * (work.compute_bytes + FP32)
    hidden_gradient = work.tokens * model.hidden_size * work.compute_bytes
    head_gradient = model.embedding_params * FP32 if work.trains_all else 0
    total = chunk + hidden_gradient + head_gradient
    return LossMemory(total, hidden_gradient + head_gradient, chunk + hidden_gradient)


def liger_chunk_rows(tokens: int, vocab_size: int, hidden_size: int) -> int:
    """Rows that Liger's fused linear cross entropy takes at a time (ops/fused_linear_cross_entropy.py)."""
    rows = ceil_div(tokens, ceil_div(vocab_size, hidden_size))
    return min(1 << (rows - 1).bit_length(), tokens)
