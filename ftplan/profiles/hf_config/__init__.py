"""From a Hugging Face ``config.json`` to a `ModelProfile`: pure, and complete or an error, never a guess.

Every mapped family is a row of `FAMILIES`. A model type that is not there maps only if its config has Llama's fields
and none that hints at another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from ftplan.errors import ModelConfigError
from ftplan.profiles.hf_config import classic, llama, mla, moe, remote, unknown, vision
from ftplan.profiles.hf_config.blocks import Body
from ftplan.profiles.hf_config.fields import Fields
from ftplan.profiles.model_schema import DropoutProfile, ModelProfile

__all__ = ["FAMILIES", "Family", "profile_from_config"]


@dataclass(frozen=True)
class Family:
    """How a model type is read, and what its config class assumes where a file leaves a field out.

    ``dropout`` is that class's default of what blocks add (GPT-2's also of attention and embedding).
    """

    build: Callable[[Fields], Body]
    defaults: Mapping[str, object] | None = None
    dropout: float = 0.0


FAMILIES: Final[Mapping[str, Family]] = {
    **{name: Family(partial(llama.build, traits=traits), traits.defaults) for name, traits in llama.TRAITS.items()},
    "gemma3": Family(vision.gemma3),
    "qwen2_vl": Family(vision.qwen2_vl, llama.TRAITS["qwen2_vl"].defaults),
    "qwen2_5_vl": Family(vision.qwen2_5_vl, llama.TRAITS["qwen2_5_vl"].defaults),
    "gpt2": Family(classic.gpt2, dropout=0.1),
    "gptj": Family(classic.gptj),
    "gpt_neox": Family(classic.gpt_neox),
    "opt": Family(classic.opt, dropout=0.1),
    "bloom": Family(classic.bloom),
    "phi": Family(classic.phi),
    "falcon": Family(classic.falcon),
    "mixtral": Family(moe.mixtral, moe.DEFAULTS["mixtral"]),
    "qwen3_moe": Family(moe.qwen3_moe, moe.DEFAULTS["qwen3_moe"]),
    "gpt_oss": Family(moe.gpt_oss, moe.DEFAULTS["gpt_oss"]),
    "deepseek_v2": Family(mla.deepseek_v2, mla.DEFAULTS["deepseek_v2"]),
    "deepseek_v3": Family(mla.deepseek_v3, mla.DEFAULTS["deepseek_v3"]),
    "qwen": Family(remote.qwen),
    "baichuan": Family(remote.baichuan),
    "chatglm": Family(remote.chatglm),
    "internlm2": Family(remote.internlm2),
}


def profile_from_config(config: Mapping[str, object], *, id: str, source: str) -> ModelProfile:  # noqa: A002
    """Return the profile of the model that ``config`` describes.

    ``config`` is the parsed ``config.json``, ``id`` the name the profile gets (also in messages), and ``source`` says
    where the config came from.

    Raises `ModelConfigError` if a field is missing or has a value that cannot be, or if the architecture is not mapped.
    """
    if not isinstance(config, Mapping):
        raise ModelConfigError(f"{id}: the config is {type(config).__name__}, not an object")
    fields = Fields(config, owner=id)
    model_type = fields.text_or("model_type", "")
    family = FAMILIES.get(model_type) or Family(unknown.build)
    fields = Fields(config, owner=id, defaults=family.defaults)
    body = family.build(fields)
    return ModelProfile(
        id=id,
        model_type=model_type,
        architecture=_architecture(fields),
        source=source,
        config=config,
        checkpoint_dtype=_dtype(fields),
        dropout=_dropout(fields, family.dropout),
        **vars(body),
    )


def _dropout(fields: Fields, default: float) -> DropoutProfile:
    """Names as the families have them: GPT-2 and Phi ``*_pdrop``, OPT ``dropout``, the others ``*_dropout``."""

    def first(*names: str, otherwise: float) -> float:
        return next((fields.probability_or(name, 0.0) for name in names if fields.is_set(name)), otherwise)

    everywhere = default if fields.text_or("model_type", "") == "gpt2" else 0.0
    return DropoutProfile(
        attention=first("attn_pdrop", "attention_dropout", otherwise=everywhere),
        hidden=first("resid_pdrop", "hidden_dropout", "residual_dropout", "dropout", otherwise=default),
        embedding=first("embd_pdrop", "embedding_dropout", otherwise=everywhere),
    )


def _architecture(fields: Fields) -> str:
    names = fields.sequence("architectures") or ()
    return next((name for name in names if isinstance(name, str)), "")


def _dtype(fields: Fields) -> str:
    """Return the dtype the file names, or its text model's; bf16, the usual one, where neither does."""
    nested = fields.sub_or_none("text_config")
    return fields.dtype or (nested.dtype if nested else None) or "bf16"
