"""Reading a config: typed values, alternative names, the defaults of transformers' config classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ftplan.errors import ModelConfigError

ALTERNATIVES: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "n_kv_heads"),
    "intermediate_size": ("ffn_hidden_size", "ffn_dim", "n_inner"),
    "vocab_size": ("padded_vocab_size",),
    "max_position_embeddings": ("n_positions", "model_max_length", "max_sequence_length", "seq_length"),
    "hidden_act": ("hidden_activation", "activation_function", "activation"),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "num_local_experts": ("num_experts", "n_routed_experts"),
    "torch_dtype": ("dtype",),
    "in_channels": ("in_chans", "num_channels"),
}
"""What configs call the same thing; the key is the name used here, and the first one present wins."""

MAX_LAYERS: Final = 10_000
"""No model is deeper: a larger number is a mistake, and layers are walked one by one."""

_ABSENT: Final = object()
_DTYPES: Final = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


class Fields:
    """A config with typed access; every error is a `ModelConfigError` that names the field.

    ``defaults`` holds what transformers' config class assumes where the file leaves a field out; a JSON null is not
    left out, it is "none".
    """

    def __init__(
        self,
        config: Mapping[str, object],
        *,
        owner: str,
        defaults: Mapping[str, object] | None = None,
        prefix: str = "",
    ) -> None:
        self.config = config
        self.owner = owner
        self._defaults = defaults or {}
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not _ABSENT

    def _find(self, name: str) -> object:
        for candidate in (name, *ALTERNATIVES.get(name, ())):
            if candidate in self.config:
                return self.config[candidate]
        return self._defaults.get(name, _ABSENT)

    def _bad(self, name: str, value: object, wanted: str) -> ModelConfigError:
        shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}…"
        hint = "compare it with the config.json that was published with the model"
        return ModelConfigError(f"{self.owner}: {self._prefix}{name} is {shown}, not {wanted}", hint=hint)

    def require(self, *names: str) -> None:
        """Raise an error that lists every one of ``names`` that the config lacks."""
        missing = [self._prefix + name for name in names if self._find(name) in (_ABSENT, None)]
        if missing:
            raise ModelConfigError(
                f"{self.owner}: the config lacks {', '.join(missing)}",
                missing=missing,
                hint="a complete config.json of a causal language model has them",
            )

    def size(self, name: str) -> int:
        """Return a positive integer that must be there."""
        self.require(name)
        return self._positive(name, self._find(name))

    def size_or(self, name: str, fallback: int) -> int:
        """Return a positive integer, or ``fallback`` where the field is absent or null."""
        value = self._find(name)
        return fallback if value is _ABSENT or value is None else self._positive(name, value)

    def optional_size(self, name: str) -> int | None:
        """Return a positive integer, or None where the field is absent or null."""
        value = self._find(name)
        return None if value is _ABSENT or value is None else self._positive(name, value)

    def count_or(self, name: str, fallback: int) -> int:
        """Return an integer of zero or more, or ``fallback``."""
        value = self._find(name)
        if value is _ABSENT or value is None:
            return fallback
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._bad(name, value, "an integer of zero or more")
        return value

    def _positive(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self._bad(name, value, "a positive integer")
        if name in {"num_hidden_layers", "depth"} and value > MAX_LAYERS:
            raise self._bad(name, value, f"at most {MAX_LAYERS}")
        return value

    def fraction_or(self, name: str, fallback: float) -> float:
        """Return a number above 0 and up to 1, or ``fallback``."""
        value = self._find(name)
        if value is _ABSENT or value is None:
            return fallback
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise self._bad(name, value, "a number above 0 and up to 1")
        return float(value)

    def probability_or(self, name: str, fallback: float) -> float:
        """Return a number from 0 to below 1, or ``fallback``."""
        value = self._find(name)
        if value is _ABSENT or value is None:
            return fallback
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise self._bad(name, value, "a number from 0 to below 1")
        return float(value)

    def is_set(self, name: str) -> bool:
        """Whether the field is there and not null (soft caps, windows)."""
        return self._find(name) not in (_ABSENT, None)

    def flag(self, name: str, fallback: bool) -> bool:
        """Return true or false, or ``fallback``."""
        value = self._find(name)
        if value is _ABSENT or value is None:
            return fallback
        if not isinstance(value, bool):
            raise self._bad(name, value, "true or false")
        return value

    def text_or(self, name: str, fallback: str) -> str:
        """Return a string, or ``fallback``."""
        value = self._find(name)
        if value is _ABSENT or value is None:
            return fallback
        if not isinstance(value, str):
            raise self._bad(name, value, "a string")
        return value

    def sequence(self, name: str) -> Sequence[object] | None:
        """Return a list, or None."""
        value = self._find(name)
        if value is _ABSENT or value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self._bad(name, value, "a list")
        return value

    def sub(self, name: str, defaults: Mapping[str, object] | None = None) -> Fields:
        """Return the nested config ``name``, which must be there."""
        self.require(name)
        value = self._find(name)
        if not isinstance(value, Mapping):
            raise self._bad(name, value, "an object")
        return Fields(value, owner=self.owner, defaults=defaults, prefix=f"{self._prefix}{name}.")

    def sub_or_none(self, name: str) -> Fields | None:
        """Return the nested config ``name`` if it is there."""
        return self.sub(name) if self.is_set(name) else None

    def fail(self, message: str, *, hint: str = "") -> ModelConfigError:
        """Return an error about this config, to raise."""
        return ModelConfigError(f"{self.owner}: {message}", hint=hint)

    @property
    def dtype(self) -> str | None:
        """``bf16``, ``fp16`` or ``fp32`` where the config says one of these."""
        value = self._find("torch_dtype")
        if isinstance(value, str):
            return _DTYPES.get(value.removeprefix("torch."))
        # Qwen (1) has no torch_dtype but three booleans.
        return next((name for name in ("bf16", "fp16", "fp32") if self.config.get(name) is True), None)
