"""Small architectures that trace in about a second, and settings around them."""

from __future__ import annotations

from typing import Any

from ftplan.estimators.trace.settings import TraceSettings
from ftplan.profiles.stacks import load_stack
from ftplan.spec import RunConfig

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
TIED = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}
ALTERNATING = {
    **LLAMA,
    "model_type": "gemma2",
    "head_dim": 64,
    "num_hidden_layers": 12,
    "layer_types": ["sliding_attention", "full_attention"] * 6,
    "sliding_window": 64,
}
EXPERTS = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "head_dim": 64,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 1000, "n_embd": 256, "n_layer": 8, "n_head": 4, "n_positions": 512}


OWN = frozenset(TraceSettings.__dataclass_fields__) - {"config", "model", "stack"}


def settings(model: dict[str, Any] = LLAMA, **fields: Any) -> TraceSettings:
    """Settings of a short trace: fields of `TraceSettings` by name, all others of `RunConfig`."""
    own = {name: fields.pop(name) for name in OWN if name in fields}
    config = RunConfig(model="small", **{"seq_len": 128, **fields})
    return TraceSettings(config=config, model=model, stack=load_stack(config.stack), **own)
