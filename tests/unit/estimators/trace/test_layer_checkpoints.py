"""Checkpoints around a layer's call or its forward, whatever the installed transformers does."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402

from ftplan.estimators.trace.checkpoints import CHECKPOINTS_CALLS, checkpointing  # noqa: E402


def small_model() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).train()


def gradients_and_calls(model: Any) -> tuple[list[Any], int]:
    """Gradients of a step with reentrant checkpoints, and how often a hook of the second layer ran."""
    calls = []
    model.enable_input_require_grads()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer transformers call it otherwise
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    ids = torch.arange(32).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad for parameter in model.parameters()], len(calls)


@pytest.mark.parametrize(("calls", "expected"), [(False, 1), (True, 2)])
def test_hooks_run_where_they_should(calls: bool, expected: int):
    model = small_model()
    plain, _ = gradients_and_calls(copy.deepcopy(model))
    with checkpointing(model.modules(), calls=calls):
        found, counted = gradients_and_calls(model)
    assert counted == expected
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_nothing_stays_behind():
    before = dict(vars(GradientCheckpointingLayer))
    with checkpointing(small_model().modules(), calls=not CHECKPOINTS_CALLS):
        assert dict(vars(GradientCheckpointingLayer)) != before
    assert dict(vars(GradientCheckpointingLayer)) == before
