"""A case's model: the real shapes with random weights, built on the device, quantized and with adapters."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.measuring.case import Case, model_config_fields

DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TARGETS: Final = {"qv": ["q_proj", "v_proj"]}
HEAD: Final = "lm_head"


def model_config(case: Case) -> PretrainedConfig:
    """transformers' config of the case's model, without a cache for generation."""
    fields = model_config_fields(case)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.use_cache = False
    return config


def base_model(case: Case, config: PretrainedConfig, place: str) -> PreTrainedModel:
    """The model on ``place``; under ZeRO-3 zero.Init, which the Trainer's arguments switched on, places it."""
    options = {"dtype": DTYPES[case.weights], "attn_implementation": case.attn}
    if case.parallel == "zero3":
        return AutoModelForCausalLM.from_config(config, **options)
    with torch.device(place):
        return AutoModelForCausalLM.from_config(config, **options)


def trainable_model(case: Case, model: PreTrainedModel, place: str) -> Any:
    """The model as its method trains it: 4-bit for QLoRA, with adapters for both."""
    if case.method == "qlora":
        model = quantized(model, place, torch.bfloat16 if case.is_fsdp else None)
    return model if case.method == "full" else with_adapters(case, model)


def with_adapters(case: Case, model: PreTrainedModel) -> Any:
    """peft's model around ``model``."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if case.kbit_prepare:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=case.ckpt, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    elif case.ckpt:
        model.enable_input_require_grads()
    lora = LoraConfig(
        r=case.rank,
        lora_alpha=case.alpha,
        target_modules=TARGETS.get(case.targets, case.targets) if isinstance(case.targets, str) else case.targets,
        lora_dropout=case.dropout,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora, autocast_adapter_dtype=case.adapter_fp32)


def quantized(model: PreTrainedModel, place: str, storage: torch.dtype | None) -> PreTrainedModel:
    """``model`` with every nn.Linear but the head in NF4 with double quantization, swapped one by one in place.

    ``storage`` is the dtype that holds the packed bytes: FSDP shards it only if it is that of the other weights.
    """
    for _, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and name != HEAD:
                setattr(module, name, _quantized_linear(child, storage).to(place))
    model.is_loaded_in_4bit = True
    model.is_quantized = True
    model.hf_quantizer = _Quantizer()
    model.quantization_method = "bitsandbytes"
    return model


def _quantized_linear(linear: torch.nn.Linear, storage: torch.dtype | None) -> torch.nn.Module:
    import bitsandbytes

    packed = {"quant_storage": storage} if storage else {}
    with_bias = linear.bias is not None
    layer = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=with_bias,
        compute_dtype=torch.bfloat16,
        compress_statistics=True,
        quant_type="nf4",
        **packed,
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer, **packed
    )
    if with_bias:
        layer.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
    return layer


class _QuantizationConfig:
    quant_method = "bitsandbytes"


class _Quantizer:
    """What the Trainer asks of a quantized model."""

    is_trainable = True
    is_qat_trainable = False
    quantization_config = _QuantizationConfig


def element_count(model: Any, *, trainable: bool = False) -> int:
    """Elements of all parameters, or of those that train; ZeRO-3 keeps the whole count beside its shard."""
    chosen = (each for each in model.parameters() if each.requires_grad or not trainable)
    return sum(getattr(each, "ds_numel", each.numel()) for each in chosen)
