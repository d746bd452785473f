"""The model, its adapters and its 4-bit weights under the names of TRL's ModelConfig, as scripts are read, too.

What a script leaves out is peft's and bitsandbytes' own default, not ModelConfig's: `python_source` fills that in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.estimators.targets import target_modules
from ftplan.launcher.formats.partial import Partial, Taken
from ftplan.launcher.formats.settings import Settings
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig
from ftplan.verdicts import Problem, Severity

KEYS: Final = frozenset(
    {
        *("model_name_or_path", "dtype", "attn_implementation", "use_peft", "lora_r", "lora_alpha", "lora_dropout"),
        *("lora_target_modules", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "prepare_kbit"),
        *("model_init_kwargs.dtype", "model_init_kwargs.torch_dtype"),
    }
)
"""Keys that are read here; kernels of other names than `ATTENTION`'s are the audit's to report."""
BESIDE: Final = KEYS | {
    *("load_in_8bit", "use_dora", "use_rslora", "lora_modules_to_save", "lora_target_parameters", "lora_task_type"),
    *("bnb_4bit_quant_storage", "torch_dtype", "model_revision", "trust_remote_code"),
    *("model_init_kwargs.device_map", "model_init_kwargs.quantization_config"),
}
"""Keys of ModelConfig that scripts of other trainers than TRL's have, too."""
DTYPES: Final[Mapping[str, str]] = {
    "auto": "bf16",  # the checkpoint's own, bf16 for every model of the catalogue
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "fp16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "fp32": "fp32",
    "float": "fp32",
}
WRITTEN_DTYPES: Final[Mapping[str, str]] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ATTENTION: Final = ("sdpa", "eager", "flash_attention_2")
ALL_LINEAR: Final = "all-linear"
BY_PEFT: Final = "qv"
"""What peft adapts where no modules are named: for nearly every model that it knows, queries and values."""


def parse_model(settings: Settings, *, dtype: str) -> Partial:
    """Model, method, adapters, quantization, dtype and attention; ``dtype`` is the one where nothing is said."""
    fields: dict[str, Any] = {}
    take = Taken(settings, fields)
    if settings.value("model_name_or_path"):
        take("model_name_or_path", "model", settings.text("model_name_or_path"))
    take("use_peft", "method", "lora" if settings.flag("use_peft") else "full")
    if settings.flag("use_peft"):
        _adapters(settings, take)
    if settings.flag("load_in_4bit") and settings.flag("use_peft"):
        take("load_in_4bit", "method", "qlora")
        take("bnb_4bit_quant_type", "quantization", _quantization(settings))
        take("use_bnb_nested_quant", "double_quantization", settings.flag("use_bnb_nested_quant"))
        take("prepare_kbit", "prepare_kbit", settings.flag("prepare_kbit"))
    key = _stated(settings, "dtype")
    take(key, "weights_dtype", DTYPES.get(settings.text(key, dtype).lower().removeprefix("torch."), "bf16"))
    key = _stated(settings, "attn_implementation")
    take(key, "attention", _attention(settings.text(key)))
    return Partial(fields, take.origins, problems=tuple(_problems(settings)))


def _adapters(settings: Settings, take: Taken) -> None:
    rank = settings.integer("lora_r", 16, least=1)
    take("lora_r", "lora_rank", rank)
    take("lora_alpha", "lora_alpha", settings.integer("lora_alpha", 32, least=1))
    take("lora_dropout", "lora_dropout", settings.number("lora_dropout", 0.05))
    names = settings.words("lora_target_modules")
    take("lora_target_modules", "lora_targets", ALL_LINEAR if ALL_LINEAR in names else ",".join(names) or BY_PEFT)


def _stated(settings: Settings, key: str) -> str:
    """``key``, or its name inside ``model_init_kwargs``, which wins (trl 1.16 scripts/sft.py)."""
    names = (f"model_init_kwargs.{key}", f"model_init_kwargs.torch_{key}", key, f"torch_{key}")
    return next((name for name in names if settings.value(name) is not None), key)


def _quantization(settings: Settings) -> str:
    return "fp4" if settings.text("bnb_4bit_quant_type", "nf4").lower() == "fp4" else "nf4"


def _attention(asked: str) -> str:
    """The nearest kind that is modelled; transformers takes sdpa where nothing is said."""
    if asked in ATTENTION:
        return asked
    return "flash_attention_2" if "flash" in asked.lower() else "sdpa"


def _problems(settings: Settings) -> list[Problem]:
    if not settings.flag("use_peft") or settings.words("lora_target_modules"):
        return []
    return [
        Problem(
            "assumption",
            Severity.NOTE,
            "lora_target_modules is not set: peft adapts what it knows for the model, mostly queries and values",
            hint="set all-linear, or the modules by name",
            key="lora_target_modules",
            place=settings.place("use_peft"),
            source="peft 0.21 utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
        )
    ]


def model_settings(config: RunConfig) -> dict[str, Any]:
    """``config``'s model under ModelConfig's names."""
    found: dict[str, Any] = {
        "model_name_or_path": config.model,
        "dtype": WRITTEN_DTYPES[config.weights_dtype],
        "attn_implementation": config.attention,
    }
    if config.trains_adapters:
        found |= {
            "use_peft": True,
            "lora_r": config.lora_rank,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
        }
        names = _written_targets(config)
        if names:
            found["lora_target_modules"] = names
    if config.quantization != "none":
        found |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": config.quantization,
            "use_bnb_nested_quant": config.double_quantization,
        }
    return found


def _written_targets(config: RunConfig) -> list[str]:
    """The modules by name; none where peft's own choice is the model's fused queries and values."""
    if config.lora_targets != BY_PEFT:
        return list(config.target_names)
    try:
        names = sorted(target_modules(load_model(config.model), config))
    except InputError:
        return []
    return names if names == ["q_proj", "v_proj"] else []
