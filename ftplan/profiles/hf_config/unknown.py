"""Model types without a row of their own: Llama's shape or an error."""

from __future__ import annotations

import re
from typing import Final

from ftplan.profiles.hf_config import llama
from ftplan.profiles.hf_config.blocks import Body
from ftplan.profiles.hf_config.fields import Fields

_OTHER_SHAPE: Final = re.compile(
    r"expert|(^|_)moe(_|$)|lora_rank|(^|_)(ssm|mamba|rwkv|linear_attn|conv|state)_|^(ssm|mamba)|state_size|layers_block"
    r"|_config$|block_types|cross_attention|encoder_|decoder_layers|qk_(nope|rope)_head_dim|nextn|shared_kv|altup|laurel"
)
_HARMLESS: Final = re.compile(
    r"^(quantization|generation|compression|adapter)_config$|^(is_)?encoder_no_repeat_ngram_size$"
)
_FLAGS_OF_OTHERS: Final = (
    "is_encoder_decoder",
    "alibi",
    "parallel_attn",
    "use_parallel_residual",
    "use_qk_norm",
    "qk_layernorm",
    "use_qk_layernorm",
    "multi_query",
    "bias",
    "add_bias_linear",
    "add_qkv_bias",
)
_LAYER_NORM_KEYS: Final = ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon")
NOT_LLAMA: Final = frozenset(
    {
        "apertus",
        "arcee",
        "bert",
        "bitnet",
        "cohere",
        "cohere2",
        "codegen",
        "diffllama",
        "doge",
        "exaone4",
        "glm",
        "glm4",
        "gpt_bigcode",
        "gpt_neo",
        "granite_swa",
        "helium",
        "hrm_text",
        "hunyuan_v1_dense",
        "hyperclovax",
        "jais2",
        "minicpm",
        "minicpm3",
        "modernbert-decoder",
        "mpt",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo3",
        "persimmon",
        "phimoe",
        "qwen3_next",
        "recurrent_gemma",
        "roberta",
        "stablelm",
        "step3p7",
        "t5",
        "vaultgemma",
        "xglm",
        "youtu",
        "zamba",
    }
)
"""Types whose fields look like Llama's while their modules do not (norms, fused or ungated matrices)."""


def build(fields: Fields) -> Body:
    """Return the body of a model of Llama's shape.

    Raises `ModelConfigError` if fields are missing or one of them hints at another shape.
    """
    model_type = fields.text_or("model_type", "")
    signs = _signs(fields, model_type)
    if signs:
        raise fields.fail(
            f"model type {model_type!r} is not mapped, and {', '.join(signs)} speaks against Llama's shape",
            hint="open an issue with the config.json, or plan with a catalogue model of the same size",
        )
    return llama.build(fields, llama.UNKNOWN)


def _signs(fields: Fields, model_type: str) -> list[str]:
    """Return what in the config speaks against Llama's shape."""
    keys = [
        key
        for key, value in fields.config.items()
        if isinstance(key, str)
        and value not in (None, False, 0)
        and _OTHER_SHAPE.search(key)
        and not _HARMLESS.match(key)
    ]
    keys += [name for name in _FLAGS_OF_OTHERS if fields.config.get(name) is True]
    if "rms_norm_eps" not in fields.config:
        keys += [name for name in _LAYER_NORM_KEYS if name in fields.config]
    return ["its model type"] if model_type in NOT_LLAMA else sorted(keys)
