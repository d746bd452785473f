"""Makes LLaMA-Adapter's wrapper see what was put around its model; the trace and the training process share it."""

from __future__ import annotations

import functools
from typing import Any

from peft import PeftModel
from torch import nn


def follow_base(model: nn.Module) -> None:
    """Let the prompts' wrapper in ``model`` call its base model's forward as it is at each call.

    peft 0.21.2 keeps the forward that the model had when it was wrapped (tuners/adaption_prompt/model.py,
    AdaptionPromptModel.__init__), and so passes over those that TRL 1.16 and, when training begins, Liger put in its
    place for their losses.
    """
    assert isinstance(model, PeftModel)
    wrapper = model.base_model

    @functools.wraps(wrapper.model.forward)
    def forward(*given: Any, **named: Any) -> Any:
        return wrapper.model.forward(*given, **named)

    wrapper.forward = forward
