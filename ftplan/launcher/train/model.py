"""Builds the model a job names: loaded or with random weights, quantized, with adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeAlias

import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    set_seed,
)

from ftplan.estimators.targets import ALL_LINEAR, QUERY_VALUE, target_modules
from ftplan.files import publish
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.control import Control
from ftplan.profiles.hf_config import profile_from_config
from ftplan.spec import RunConfig

Model: TypeAlias = PreTrainedModel | PeftModel

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def base_model(job: TrainJob, control: Control) -> PreTrainedModel:
    """The model of ``job`` before its adapters, on this rank: loaded, or with random weights."""
    if job.model.kind == "config":
        if job.config.quantization == "none":
            return from_config(job)
        # Weights are quantized while they are loaded: random ones have to be on disk first.
        return _pretrained(job, str(_written(job, control)))
    return _pretrained(job, job.model.location)


def adapted(model: PreTrainedModel, job: TrainJob) -> Model:
    """``model`` with the adapters that ``job`` trains, if it does."""
    config = job.config
    if config.prepare_kbit:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    if not config.trains_adapters:
        return model
    # The adapters' first values are the same on every rank and after a resume.
    set_seed(job.seed)
    chosen = prompt_config(config) if config.trains_prompts else lora_config(config, model.config)
    return get_peft_model(model, chosen)


def prompt_config(config: RunConfig) -> AdaptionPromptConfig:
    """LLaMA-Adapter's prompts, as peft is told about them."""
    return AdaptionPromptConfig(
        adapter_len=config.adapter_len, adapter_layers=config.adapter_layers, task_type="CAUSAL_LM"
    )


def lora_config(config: RunConfig, shape: PretrainedConfig) -> LoraConfig:
    """The adapters, as peft is told about them."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_targets(config, shape),
        bias="none",
        task_type="CAUSAL_LM",
    )


def cast_adapters(model: Model, config: RunConfig) -> None:
    """Give the adapters the dtype of the configuration, whatever peft and the trainer have made of them.

    Those under ZeRO-3, which DeepSpeed has partitioned by now, keep theirs.
    """
    if not config.trains_adapters or config.sharding == "zero3":
        return
    dtype = DTYPES[config.adapter_dtype]
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def count_parameters(model: Model) -> tuple[int, int]:
    """All and trainable elements; a 4-bit weight counts its elements, not its bytes."""
    total = trainable = 0
    for parameter in model.parameters():
        elements = getattr(parameter, "ds_numel", None) or _elements(parameter)
        total += elements
        trainable += elements if parameter.requires_grad else 0
    return total, trainable


def from_config(job: TrainJob) -> PreTrainedModel:
    """The model of the job's config.json, with the values that its class gives new weights."""
    config = AutoConfig.from_pretrained(job.model.location, trust_remote_code=False)
    set_seed(job.seed)
    return AutoModelForCausalLM.from_config(
        config,
        dtype=DTYPES[job.config.weights_dtype],
        attn_implementation=job.config.attention,
        trust_remote_code=False,
    )


def _pretrained(job: TrainJob, location: str) -> PreTrainedModel:
    config = job.config
    model = AutoModelForCausalLM.from_pretrained(
        location,
        dtype=DTYPES[config.weights_dtype],
        attn_implementation=config.attention,
        quantization_config=quantization_of(config),
        device_map={"": _device(job)} if config.quantization != "none" else None,
        trust_remote_code=False,
    )
    keep_packing(model)
    return model


def keep_packing(model: PreTrainedModel) -> None:
    """Keep 4-bit weights in one layout.

    In evaluation bitsandbytes 0.50 repacks them for AVX-512, which needs widths divisible by 64 and leaves weights that
    training then reads in another layout.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def quantization_of(config: RunConfig) -> BitsAndBytesConfig | None:
    """How weights are quantized, as transformers is told; None for those that are not."""
    if config.quantization == "none":
        return None
    sharded = config.sharding in ("fsdp2", "fsdp2-grad-op", "hsdp", "zero3")
    dtype = DTYPES[config.precision if config.precision != "none" else config.weights_dtype]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization,
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        # Sharding splits parameters of a float dtype only, and all of one dtype.
        bnb_4bit_quant_storage=DTYPES[config.weights_dtype] if sharded else torch.uint8,
    )


def _written(job: TrainJob, control: Control) -> Path:
    """The random model as a folder, written once for each disk."""
    folder = Path(job.run_dir) / "base"
    if control.keeps_files and not folder.exists():
        temporary = folder.with_name(".base.tmp")
        from_config(job).save_pretrained(temporary)
        publish(temporary, folder)
    control.barrier()
    return folder


def _device(job: TrainJob) -> str | int:
    return "cpu" if job.device == "cpu" else int(os.environ.get("LOCAL_RANK", "0"))


def _targets(config: RunConfig, shape: PretrainedConfig) -> str | list[str]:
    if config.lora_targets == ALL_LINEAR:
        return ALL_LINEAR
    if QUERY_VALUE not in config.target_names:
        return list(config.target_names)
    # The same names that the estimate counted: peft's own defaults differ from them for some architectures.
    profile = profile_from_config(shape.to_dict(), id=config.model, source="the loaded model")
    return list(target_modules(profile, config))


def _elements(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else int(parameter.numel())
