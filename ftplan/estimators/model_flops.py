"""FLOPs that a token takes by the model's own arithmetic, and what the devices could do: model FLOPs utilisation.

MFU is the model FLOPs of the tokens trained a second over the peak dense FLOP/s of all devices in the dtype of the
matrix products (Chowdhery et al., PaLM, appendix B). Counted here, and nothing else:

- 2 a weight that the token passes and the forward, and for each gradient as many again: the inputs' always, the
  weights' where they train. Frozen weights under adapters take 4, adapters and full training 6 a weight.
- Attention: both products over the causal half of the scores, and twice that backward, because both of their operands
  are activations. PaLM counts the whole matrix.
- The head. The look-up of embeddings, norms and activation functions are left out.
- No recomputation: checkpointing makes a step longer and its MFU lower. The first layer's inputs count as if they
  needed gradients.
"""

from __future__ import annotations

from typing import NamedTuple

from ftplan.estimators.workload import Workload
from ftplan.profiles.device_schema import GpuProfile


class ForwardFlops(NamedTuple):
    """FLOPs of one token's forward: in the layers' weights, in the scores for each token of its row, in the head."""

    weights: int
    scores: int
    head: int
    adapters: int


class TokenFlops(NamedTuple):
    """Model FLOPs of one token in training: ``fixed``, and ``per_row_token`` for each token of the row it is in."""

    fixed: int
    per_row_token: int


def forward_flops(work: Workload) -> ForwardFlops:
    """FLOPs of one token's forward: 2 a weight it passes; causal attention needs half of the scores."""
    model = work.model
    adapters = 2 * work.trainable if work.config.trains_adapters else 0
    return ForwardFlops(2 * model.active_weights, model.score_width, 2 * model.embedding_params, adapters)


def token_flops(work: Workload) -> TokenFlops:
    """Model FLOPs of one token, forward and backward, as the module's docstring counts them."""
    forward = forward_flops(work)
    passes = 2 if work.config.trains_adapters else 3
    return TokenFlops((forward.weights + forward.head) * passes + 3 * forward.adapters, 3 * forward.scores)


def peak_flops_per_second(work: Workload) -> float | None:
    """Dense peak of all devices that take part, in the dtype of the matrix products; None on CPUs, which state none."""
    return None if work.on_cpu else sum(device_flops_per_second(work, gpu) for gpu in work.gpus)


def device_flops_per_second(work: Workload, gpu: GpuProfile) -> float:
    """Dense peak of one device in the dtype of the matrix products."""
    dtype = {2: "fp16" if work.config.precision == "fp16" else "bf16", 4: "fp32"}[work.compute_bytes]
    return gpu.flops.get(dtype) or gpu.flops["fp32"]
