"""The optimizer of a trace: the real classes, with the parameter groups of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from ftplan.errors import InputError
from ftplan.estimators.trace.recorder import Recorder
from ftplan.spec import RunConfig

_DECAY: Final = 0.0
"""Trainer's default."""
PAGED_FROM: Final = 100_000
"""Elements from which bitsandbytes pages a state (optim/optimizer.py, get_state_buffer)."""


def make_optimizer(
    config: RunConfig, model: torch.nn.Module, recorder: Recorder, *, foreach: bool = True
) -> torch.optim.Optimizer:
    """The optimizer called ``config.optimizer`` over the trainable parameters of ``model``.

    Raises InputError for one whose class is not known here.
    """
    groups = parameter_groups(model)
    name = config.optimizer
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(groups, lr=1e-4, foreach=foreach) if not foreach else FusedAdamW(groups, lr=1e-4)
    if name == "adamw_torch":
        return torch.optim.AdamW(groups, lr=1e-4, foreach=foreach)
    if "8bit" in name or name.startswith("paged_"):
        return _bitsandbytes(name, groups, model, recorder)
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(groups, lr=1e-4, scale_parameter=False, relative_step=False)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1e-4, foreach=foreach)
    raise InputError(f"optimizer {name} cannot be traced", hint="use --estimator analytic", field="optimizer")


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay, as Trainer.create_optimizer makes them."""
    from transformers.trainer_pt_utils import get_parameter_names

    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], forbidden))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": _DECAY},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class FusedAdamW(torch.optim.Optimizer):  # type: ignore[misc]
    """AdamW in one kernel a group: states, but no temporaries (torch/optim/adam.py, _fused_adam)."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        """Make the states on the first step; update in place."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.zeros(()),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def _bitsandbytes(
    name: str, groups: list[dict[str, Any]], model: torch.nn.Module, recorder: Recorder
) -> torch.optim.Optimizer:
    import bitsandbytes as bnb

    classes = {
        "adamw_bnb_8bit": bnb.optim.AdamW8bit,
        "adamw_8bit": bnb.optim.AdamW8bit,
        "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
        "paged_adamw_32bit": bnb.optim.PagedAdamW32bit,
        "paged_adamw": bnb.optim.PagedAdamW32bit,
        "lion_8bit": bnb.optim.Lion8bit,
        "paged_lion_8bit": bnb.optim.PagedLion8bit,
    }
    if name not in classes:
        raise InputError(f"optimizer {name} cannot be traced", hint="use --estimator analytic", field="optimizer")
    manager = bnb.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):  # Trainer keeps the states of embeddings in 32 bits
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    optimizer: Any = classes[name](groups, lr=1e-4)
    if optimizer.is_paged:
        optimizer.get_state_buffer = _paged_buffers(recorder)
    made: torch.optim.Optimizer = optimizer
    return made


def _paged_buffers(recorder: Recorder) -> Callable[..., torch.Tensor]:
    """States of large parameters in managed memory, which the caching allocator knows nothing of."""

    def buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if parameter.numel() < PAGED_FROM:
            return torch.zeros_like(parameter, dtype=dtype)
        with recorder.making_on_host():
            return torch.zeros_like(parameter, dtype=dtype)

    return buffer
