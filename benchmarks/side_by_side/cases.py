"""What is trained, and its configuration as each of the two programs runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ftplan.spec import RunConfig

SEQ_LEN: Final = 2048


@dataclass(frozen=True)
class Case:
    """A training that both programs do.

    ``model`` is a name of the catalogue; ``shape`` replaces fields of its config.json, for a rehearsal on a CPU.
    """

    id: str
    model: str
    method: Literal["full", "lora"]
    micro_batch: int
    accumulation: int
    seq_len: int = SEQ_LEN
    lora_rank: int = 16
    shape: Mapping[str, Any] = field(default_factory=dict)

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.micro_batch * self.accumulation

    @property
    def tokens_per_step(self) -> int:
        """Every row is full."""
        return self.global_batch * self.seq_len


CASES: Final = (
    Case("qwen2.5-1.5b-lora", "Qwen2.5-1.5B", "lora", micro_batch=4, accumulation=2),
    Case("llama-3.2-3b-lora", "Llama-3.2-3B", "lora", micro_batch=4, accumulation=2),
    Case("qwen2.5-0.5b-full", "Qwen2.5-0.5B", "full", micro_batch=4, accumulation=2),
    Case("qwen2.5-7b-lora", "Qwen2.5-7B", "lora", micro_batch=2, accumulation=4),
)

TINY_SHAPE: Final[Mapping[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1024,
    "max_window_layers": 2,
}
TINY: Final = (
    Case("tiny-qwen-lora", "Qwen2.5-1.5B", "lora", 2, 2, seq_len=64, shape=TINY_SHAPE),
    Case("tiny-llama-lora", "Llama-3.2-3B", "lora", 2, 2, seq_len=64, shape=TINY_SHAPE),
    Case("tiny-qwen-full", "Qwen2.5-0.5B", "full", 2, 2, seq_len=64, shape=TINY_SHAPE),
)


def native_config(case: Case, model: str, **changes: Any) -> RunConfig:
    """``case`` for ftplan's engine: what LLaMA-Factory does by itself, stated, and the loss of TRL unless changed.

    Weights that train are held in fp32, the rest in bf16, and computing is in bf16: LLaMA-Factory's upcasting under
    ``bf16: true`` (``profiles/data/stacks.json``). The optimizer is the default of its transformers.
    """
    fields: dict[str, Any] = {
        "model": model,
        "method": case.method,
        "lora_rank": case.lora_rank,
        "weights_dtype": "fp32" if case.method == "full" else "bf16",
        "precision": "bf16",
        "optimizer": "adamw_torch_fused",
        "gradient_checkpointing": True,
        "seq_len": case.seq_len,
        "micro_batch": case.micro_batch,
        "accumulation": case.accumulation,
        "padding": case.micro_batch > 1,
        "stack": "trl",
    }
    return RunConfig.model_validate({**fields, **changes})


def llamafactory_config(case: Case, model: str) -> RunConfig:
    """The same for LLaMA-Factory: it loads 16-bit weights, and has the whole logits."""
    return native_config(case, model, stack="llamafactory", weights_dtype="bf16", loss_path="full")
