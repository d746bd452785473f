"""A configuration as torchtune's YAML and the ``tune run`` that starts it.

On several machines ``tune run`` takes the head's address from ``PET_RDZV_ENDPOINT``, as torchrun does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.estimators.checkpoint_shards import shards
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.launcher.formats.torchtune_models import ATTENTION, MLP, Builder, builder_for
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig

TITLE: Final = "torchtune"
MAIN: Final = "torchtune.yaml"
SHARDED: Final = ("fsdp2", "fsdp2-grad-op", "hsdp")
OPTIMIZERS: Final[Mapping[str, dict[str, Any]]] = {
    "adamw_torch": {"_component_": "torch.optim.AdamW", "fused": False},
    "adamw_torch_fused": {"_component_": "torch.optim.AdamW", "fused": True},
    "sgd": {"_component_": "torch.optim.SGD"},
    "adamw_bnb_8bit": {"_component_": "bitsandbytes.optim.AdamW8bit"},
    "adamw_8bit": {"_component_": "bitsandbytes.optim.AdamW8bit"},
    "paged_adamw_32bit": {"_component_": "bitsandbytes.optim.PagedAdamW"},
    "paged_adamw": {"_component_": "bitsandbytes.optim.PagedAdamW"},
    "paged_adamw_8bit": {"_component_": "bitsandbytes.optim.PagedAdamW8bit"},
    "lion_8bit": {"_component_": "bitsandbytes.optim.Lion8bit"},
}
LOSSES: Final = {
    "chunked": "torchtune.modules.loss.LinearCrossEntropyLoss",
    "full": "torch.nn.CrossEntropyLoss",
}
DATASET: Final = "torchtune.datasets.alpaca_cleaned_dataset"


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as a torchtune file and its command."""
    builder = builder_for(config.model)
    if builder is None:
        hint = "torchtune builds models of its own list only"
        raise CannotExpressError(TITLE, {"model": config.model}, hint=hint)
    main: dict[str, Any] = {
        "output_dir": target.output_dir,
        "model": _model(config, builder),
        "tokenizer": _tokenizer(config, builder),
        "checkpointer": _checkpointer(config, builder),
        "resume_from_checkpoint": False,
        **_data(config, target),
        **_training(config, target),
        **(_parallel(config, target) if config.sharding in SHARDED else {}),
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": "${output_dir}/logs",
        },
        "log_every_n_steps": 1,
        "log_level": "INFO",
        "log_peak_memory_stats": True,
    }
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if config.expandable_segments else {}
    return Emitted(main, MAIN, _command(config, target), environment)


def _model(config: RunConfig, builder: Builder) -> dict[str, Any]:
    if not config.trains_adapters:
        return {"_component_": builder.component("full")}
    if config.quantization not in ("none", "nf4"):
        raise CannotExpressError(TITLE, {"quantization": config.quantization}, hint="torchao packs nf4 only")
    attention, mlp = _targets(config, builder)
    found: dict[str, Any] = {
        "_component_": builder.component(config.method),
        "lora_attn_modules": attention,
        "apply_lora_to_mlp": mlp,
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
    }
    if config.method == "qlora" and builder.quantizes_by_argument:
        found["quantize_base"] = True
    return found


def _targets(config: RunConfig, builder: Builder) -> tuple[list[str], bool]:
    """``lora_attn_modules`` and ``apply_lora_to_mlp``, which takes all of a layer's MLP or nothing."""
    if config.lora_targets == "all-linear":
        return list(ATTENTION), True
    wanted = {"q_proj", "v_proj"} if config.lora_targets == "qv" else set(config.target_names)
    attention = [each for each in ATTENTION if builder.module(each) in wanted]
    mlp = [each for each in MLP if builder.module(each) in wanted]
    known = {builder.module(each) for each in (*ATTENTION, *MLP)}
    if wanted - known or len(mlp) not in (0, len(MLP)):
        hint = f"of the MLP all or nothing; known: {', '.join(sorted(known))}"
        raise CannotExpressError(TITLE, {"lora_targets": config.lora_targets}, hint=hint)
    return attention, bool(mlp)


def _tokenizer(config: RunConfig, builder: Builder) -> dict[str, Any]:
    files = {key: f"{config.model}/{name}" for key, name in builder.files.items()}
    return {"_component_": builder.tokenizer, **files, "max_seq_len": config.seq_len}


def _checkpointer(config: RunConfig, builder: Builder) -> dict[str, Any]:
    count = shards(load_model(builder.id)).count
    several = {"filename_format": "model-{}-of-{}.safetensors", "max_filename": f"{count:05}"}
    return {
        "_component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpoint_dir": config.model,
        "checkpoint_files": several if count > 1 else ["model.safetensors"],
        "recipe_checkpoint": None,
        "output_dir": "${output_dir}",
        "model_type": builder.model_type,
    }


def _data(config: RunConfig, target: Target) -> dict[str, Any]:
    dataset: dict[str, Any] = {"_component_": DATASET, "packed": config.packing}
    if target.dataset:
        local = target.dataset.lower().endswith((".json", ".jsonl"))
        dataset |= {"source": "json", "data_files": target.dataset} if local else {"source": target.dataset}
    found: dict[str, Any] = {"dataset": dataset, "seed": None, "shuffle": True}
    if config.evaluates:
        found["dataset"] = {**dataset, "split": "train[:95%]"}
        found["dataset_val"] = {**dataset, "split": "train[95%:]"}
        found |= {"run_val_every_n_steps": 100, "batch_size_val": config.micro_batch}
    return found


def _training(config: RunConfig, target: Target) -> dict[str, Any]:
    if config.optimizer not in OPTIMIZERS:
        hint = f"known: {', '.join(OPTIMIZERS)}"
        raise CannotExpressError(TITLE, {"optimizer": config.optimizer}, hint=hint)
    if config.loss_path not in LOSSES:
        raise CannotExpressError(TITLE, {"kernels": config.kernels}, hint="torchtune has no Liger kernels")
    rate = target.learning_rate if target.learning_rate is not None else 3e-4 if config.trains_adapters else 2e-5
    return {
        "epochs": max(1, round(target.epochs)),
        "max_steps_per_epoch": None,
        "batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "optimizer": {**OPTIMIZERS[config.optimizer], "lr": rate},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 100,
        },
        "loss": {"_component_": LOSSES[config.loss_path]},
        "clip_grad_norm": 1.0,
        "compile": False,
        "device": "cuda",
        "dtype": config.weights_dtype,
        "enable_activation_checkpointing": config.gradient_checkpointing,
        "enable_activation_offloading": False,
    }


def _parallel(config: RunConfig, target: Target) -> dict[str, Any]:
    found: dict[str, Any] = {
        "fsdp_cpu_offload": config.offload == "optimizer+params",
        "fsdp_reshard_after_forward": config.sharding != "fsdp2-grad-op",
    }
    if config.sharding == "hsdp":
        found |= {"data_parallel_replicate_dim": target.nodes, "data_parallel_shard_dim": target.per_node}
    return found


def _command(config: RunConfig, target: Target) -> tuple[str, ...]:
    kind = "lora_finetune" if config.trains_adapters else "full_finetune"
    if config.sharding not in SHARDED:
        return ("tune", "run", f"{kind}_single_device", "--config", MAIN)
    several = ("--rdzv_backend", "c10d") if target.nodes > 1 else ()
    processes = ("--nnodes", str(target.nodes), "--nproc_per_node", str(target.per_node))
    return ("tune", "run", *processes, *several, f"{kind}_distributed", "--config", MAIN)
