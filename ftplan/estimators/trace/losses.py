"""The loss of a trace: transformers' over all logits, or TRL's, which scores tiles of them in its own kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ftplan.errors import InputError
from ftplan.estimators.trace.building import Built
from ftplan.estimators.trace.patches import replaced
from ftplan.estimators.trace.prompted import follow_base
from ftplan.spec import RunConfig
from ftplan.units import ceil_div

Called = Callable[..., Any]


@contextmanager
def loss_behaviour(built: Built, config: RunConfig) -> Iterator[None]:
    """Prepare the model for the loss path of ``config``; raises InputError if its library is missing."""
    if config.loss_path != "chunked":
        yield
        return
    try:
        from trl.kernels import chunked_logprob
        from trl.trainer import utils
    except ImportError as error:
        hint = "install ftplan[train], or use --loss-path full"
        raise InputError("loss path chunked is TRL's, which is not installed", hint=hint, field="loss_path") from error
    utils.add_fused_lm_head(built.base, outputs=("log_probs", "entropy", "is_top1"))
    if config.trains_prompts:
        follow_base(built.model)
    with ExitStack() as stack:
        for module in (chunked_logprob, utils):
            stack.enter_context(replaced(module, "_use_triton", lambda _: True))
        for name in ("_forward_kernel", "_backward_kernel"):
            stack.enter_context(replaced(chunked_logprob, name, _InPlace()))
        stack.enter_context(replaced(chunked_logprob, "_addmm_fp32", _addmm_in_place))
        stack.enter_context(replaced(chunked_logprob, "triton", _Grid))  # which a machine without GPUs may lack
        yield


def loss_of(called: Called, batch: dict[str, Any], config: RunConfig) -> torch.Tensor:
    """The loss of one micro-batch, as the trainer of the loss path computes it."""
    if config.loss_path != "chunked":
        loss: torch.Tensor = called(**batch)["loss"]
        return loss
    count = batch["num_items_in_batch"]
    out = called(**batch, use_cache=False, fused_lm_head=True)
    total = -out["log_probs"]
    return total.sum() / (out["label_mask"].sum() if count is None else count).clamp(min=1)


class _Grid:
    """What TRL asks of triton to lay out a kernel that does not run."""

    @staticmethod
    def cdiv(size: int, block: int) -> int:
        """Blocks of a grid."""
        return ceil_div(size, block)


class _InPlace:
    """A kernel that works in place on a tile, and so allocates nothing."""

    def __getitem__(self, _: object) -> Callable[..., None]:
        return lambda *_, **__: None


def _addmm_in_place(accumulated: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """On CUDA the product is added in fp32 without a copy of its operands."""
    if left.dtype == accumulated.dtype:
        accumulated.addmm_(left, right)
